"""The one way by which the service fetches what a caller's URL names: guarded, bounded, and failing with a reason.

Every hop of a redirect is a connection of its own through `Dialer`, which checks the address it connects to. No proxy,
cookie or credential of the environment takes part. Knows nothing of what is inside the bytes.
"""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import OK, responses

import httpcore
import httpx

from serve import __version__
from serve.errors import FetchFailed
from serve.media.addresses import AllowedHosts
from serve.media.dialer import Dialer, NotPublic, Resolver, SystemResolver, UnknownHost
from serve.media.url import BadUrl, read_url, shown
from serve.settings import FetchSettings

REDIRECTS = {301, 302, 303, 307, 308}
WORTH_REPEATING = {429, 500, 502, 503, 504}
COMPRESSIONS = {"gzip", "x-gzip", "deflate", "br", "zstd", "compress"}


class _Failure(Exception):
    """An attempt failed. `passing` when another one may succeed."""

    def __init__(self, why: str, passing: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.passing = passing


class Fetcher:
    """Fetches URLs, `settings.max_concurrent` at once; others wait for their turn, and their clock starts with it.

    `resolver` and `tls` replace the system's name service and trusted certificates. Raises `ValueError` for settings
    that mean nothing.
    """

    def __init__(
        self, settings: FetchSettings, resolver: Resolver | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._settings = settings
        self._resolver = resolver or SystemResolver(settings.max_concurrent)
        self._dialer = Dialer(AllowedHosts(settings.allowed_hosts), self._resolver)
        self._tls = tls or httpcore.default_ssl_context()
        self._slots = asyncio.Semaphore(settings.max_concurrent)

    async def fetch(self, text: str) -> bytes:
        """The content of the URL `text`. Raises `FetchFailed`."""
        try:
            url = read_url(text)
        except BadUrl as error:
            raise FetchFailed(shown(text), str(error)) from error
        async with self._slots:
            try:
                async with asyncio.timeout(self._settings.total_timeout_s):
                    return await self._persist(url)
            except TimeoutError as error:
                why = f"it was not complete after {self._settings.total_timeout_s:g} s"
                raise FetchFailed(shown(url), why) from error
            except _Failure as failure:
                raise FetchFailed(shown(url), failure.why) from failure

    async def aclose(self) -> None:
        """Lets go of the threads that resolve names. Fetches that run are not waited for."""
        self._resolver.close()

    async def _persist(self, url: httpx.URL) -> bytes:
        """Attempts, with growing random pauses between them, until one succeeds or fails for good."""
        for attempt in range(1, self._settings.max_attempts):
            try:
                return await self._follow(url)
            except _Failure as failure:
                if not failure.passing:
                    raise
            pause_s = self._settings.back_off_s * 2 ** (attempt - 1)
            await asyncio.sleep(random.uniform(0.5, 1) * pause_s)
        return await self._follow(url)

    async def _follow(self, url: httpx.URL) -> bytes:
        """One attempt, over all its redirects."""
        where = ""
        for _ in range(self._settings.max_redirects + 1):
            try:
                async with self._response(url) as response:
                    headers = httpx.Headers(response.headers)
                    if response.status not in REDIRECTS or "location" not in headers:
                        return await self._content(response, headers)
                    where = "after a redirect, "
                    url = read_url(headers["location"], origin=url)
            except (BadUrl, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
                failure = _failure(error, self._settings)
                raise _Failure(where + failure.why, failure.passing) from error
        raise _Failure(f"it redirects more than {self._settings.max_redirects} times")

    @asynccontextmanager
    async def _response(self, url: httpx.URL) -> AsyncIterator[httpcore.Response]:
        """The head of the answer to a GET, on a connection that serves for nothing else."""
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        headers = [
            ("Host", url.netloc.decode("ascii")),
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
            ("User-Agent", f"flux-serve/{__version__}"),
        ]
        stall_s = self._settings.stall_timeout_s
        timeouts = {"connect": self._settings.connect_timeout_s, "read": stall_s, "write": stall_s}
        async with (
            httpcore.AsyncHTTPConnection(target.origin, self._tls, network_backend=self._dialer) as connection,
            connection.stream("GET", target, headers=headers, extensions={"timeout": timeouts}) as response,
        ):
            yield response

    async def _content(self, response: httpcore.Response, headers: httpx.Headers) -> bytes:
        """The body, which ends when it has more bytes than allowed, whatever its headers promised."""
        if response.status != OK:
            raise _Failure(_refusal(response.status), passing=response.status in WORTH_REPEATING)
        if headers.get("content-encoding", "").lower() in COMPRESSIONS:
            raise _Failure("its server compresses it although it was asked not to")
        limit = self._settings.max_bytes
        too_large = _Failure(f"it has more than {limit} bytes")
        # The protocol library has checked that the header, if there is one, is a number.
        if int(headers.get("content-length", 0)) > limit:
            raise too_large
        content = bytearray()
        async for chunk in response.aiter_stream():
            content += chunk
            if len(content) > limit:
                raise too_large
        return bytes(content)


def _failure(error: Exception, settings: FetchSettings) -> _Failure:
    """What went wrong, without the error's own words: those may have addresses in them."""
    match error:
        case BadUrl():
            return _Failure(str(error))
        case NotPublic():
            return _Failure("its address is not public; the operator can allow named hosts by fetch.allowed_hosts")
        case UnknownHost():
            return _Failure("its host name is not known", error.passing)
        case httpcore.ConnectError() if _in_chain(error, ssl.SSLCertVerificationError):
            return _Failure("the certificate of its server is not valid for it")
        case httpcore.ConnectError() if _in_chain(error, ssl.SSLError):
            return _Failure("its server does not speak TLS as it should")
        case httpcore.ConnectError():
            return _Failure("its server cannot be connected to", passing=True)
        case httpcore.ConnectTimeout():
            return _Failure(f"its server took no connection within {settings.connect_timeout_s:g} s", passing=True)
        case httpcore.TimeoutException():
            return _Failure(f"its server sent nothing for {settings.stall_timeout_s:g} s")
        case _:
            return _Failure("its server broke the connection off before it was complete", passing=True)


def _refusal(status: int) -> str:
    answer = f"its server answered {status} {responses.get(status, '')}".rstrip()
    return answer + ("; it must be readable without signing in" if status in (401, 403) else "")


def _in_chain(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether `error` came from one of this kind."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None
