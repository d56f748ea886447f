"""HTTP GET client for URLs from callers: SSRF guard on every redirect, size limits, timeouts and retries.

Proxies, cookies and credentials from the environment are not used.
"""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.client import responses
from types import MappingProxyType
from typing import TypeVar

import httpcore
import httpx

from serve import __version__
from serve.net.ssrf_guard import (
    AddressNotPublic,
    AllowedHosts,
    GuardedNetworkBackend,
    Resolver,
    SystemResolver,
    UnknownHost,
)
from serve.net.url import InvalidUrl, parse_url
from serve.settings import FetchSettings

REDIRECT_STATUSES = {301, 302, 303, 307, 308}
RETRYABLE_STATUSES = {429, 500, 502, 503, 504}
COMPRESSIONS = {"gzip", "x-gzip", "deflate", "br", "zstd", "compress"}
NO_HEADERS: Mapping[str, str] = MappingProxyType({})

Result = TypeVar("Result")


class RequestFailed(Exception):
    """An attempt failed, `why` fit for a user. `passing` when another one may succeed."""

    def __init__(self, why: str, passing: bool = False) -> None:
        super().__init__(why)
        self.reason = why
        self.retryable = passing


@dataclass(frozen=True, slots=True)
class Response:
    """The head of an answer that is no redirect, and its body while the request is open."""

    url: httpx.URL
    """Where the redirects led."""
    status: int
    headers: httpx.Headers
    _response: httpcore.Response

    async def body(self, limit_bytes: int, received: int = 0) -> AsyncIterator[bytes]:
        """The body in pieces. It ends with `Failure` at `limit_bytes`, whatever the head promised.

        `received` are bytes that an earlier answer had already, of which this one is the rest.
        """
        if self.headers.get("content-encoding", "").lower() in COMPRESSIONS:
            raise RequestFailed("its server compresses it although it was asked not to")
        too_large = RequestFailed(f"it has more than {limit_bytes} bytes")
        # The protocol library has checked that the header, if there is one, is a number.
        if received + int(self.headers.get("content-length", 0)) > limit_bytes:
            raise too_large
        async for chunk in self._response.aiter_stream():
            received += len(chunk)
            if received > limit_bytes:
                raise too_large
            yield chunk

    def status_error(self, hint: str = "") -> RequestFailed:
        """What an answer without the content means; `hint` says what to do about it."""
        why = f"its server answered {self.status} {responses.get(self.status, '')}".rstrip()
        return RequestFailed(f"{why}; {hint}" if hint else why, passing=self.status in RETRYABLE_STATUSES)


class HttpClient:
    """Sends requests within the bounds of `settings`, which stand at `name` in the tree of settings.

    `resolver` and `tls` replace the system's name service and trusted certificates. Without `downgrade`, no redirect
    leads from https to plain http. Raises `ValueError` for settings that mean nothing.
    """

    def __init__(
        self,
        settings: FetchSettings,
        resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
        *,
        name: str = "fetch",
        downgrade: bool = True,
    ) -> None:
        self._settings = settings
        self._resolver = resolver or SystemResolver(settings.max_concurrent)
        self._dialer = GuardedNetworkBackend(AllowedHosts(settings.allowed_hosts), self._resolver)
        self._tls = tls or httpcore.default_ssl_context()
        self._name = name
        self._downgrade = downgrade

    @asynccontextmanager
    async def get(
        self, url: httpx.URL, headers: Mapping[str, str] = NO_HEADERS, secrets: Mapping[str, str] = NO_HEADERS
    ) -> AsyncIterator[Response]:
        """The answer at the end of all redirects. `secrets` are headers for the origin of `url` only: no other host,
        and nobody after another host, gets them. Raises `Failure`, also where the body breaks off.
        """
        home, where = origin(url), ""
        for _ in range(self._settings.max_redirects + 1):
            async with self._hop(url, {**headers, **secrets}, where) as answer:
                if answer.status not in REDIRECT_STATUSES or "location" not in answer.headers:
                    yield answer
                    return
                location = answer.headers["location"]
            where = "after a redirect, "
            url = self._next(url, location, where)
            if origin(url) != home:
                secrets = NO_HEADERS
        raise RequestFailed(f"it redirects more than {self._settings.max_redirects} times")

    async def with_retries(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """The result of the first attempt that succeeds, with growing random pauses before the next ones.

        Raises the `Failure` that does not pass, or the last one.
        """
        for number in range(1, self._settings.max_attempts):
            try:
                return await attempt()
            except RequestFailed as failure:
                if not failure.retryable:
                    raise
            pause_s = self._settings.backoff_s * 2 ** (number - 1)
            await asyncio.sleep(random.uniform(0.5, 1) * pause_s)
        return await attempt()

    def close(self) -> None:
        """Lets go of the threads that resolve names."""
        self._resolver.close()

    def _next(self, url: httpx.URL, location: str, where: str) -> httpx.URL:
        try:
            new = parse_url(location, origin=url)
        except InvalidUrl as error:
            raise RequestFailed(f"{where}{error}") from error
        if url.scheme == "https" and new.scheme == "http" and not self._downgrade:
            raise RequestFailed("it redirects from https to plain http")
        return new

    @asynccontextmanager
    async def _hop(self, url: httpx.URL, headers: Mapping[str, str], where: str) -> AsyncIterator[Response]:
        """The head of the answer to one GET, on a connection that serves for nothing else."""
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        told = {
            "Host": url.netloc.decode("ascii"),
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": f"flux-serve/{__version__}",
            **headers,
        }
        stall_s = self._settings.read_timeout_s
        timeouts = {"connect": self._settings.connect_timeout_s, "read": stall_s, "write": stall_s}
        try:
            async with (
                httpcore.AsyncHTTPConnection(target.origin, self._tls, network_backend=self._dialer) as connection,
                connection.stream(
                    "GET", target, headers=list(told.items()), extensions={"timeout": timeouts}
                ) as response,
            ):
                yield Response(url, response.status, httpx.Headers(response.headers), response)
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
            failure = self._failure(error)
            raise RequestFailed(where + failure.reason, failure.retryable) from error

    def _failure(self, error: Exception) -> RequestFailed:
        """What went wrong, without the error's own words: those may have addresses in them."""
        match error:
            case AddressNotPublic():
                allowing = f"{self._name}.allowed_hosts"
                return RequestFailed(f"its address is not public; the operator can allow named hosts by {allowing}")
            case UnknownHost():
                return RequestFailed("its host name is not known", error.retryable)
            case httpcore.ConnectError() if _in_chain(error, ssl.SSLCertVerificationError):
                return RequestFailed("the certificate of its server is not valid for it")
            case httpcore.ConnectError() if _in_chain(error, ssl.SSLError):
                return RequestFailed("its server does not speak TLS as it should")
            case httpcore.ConnectError():
                return RequestFailed("its server cannot be connected to", passing=True)
            case httpcore.ConnectTimeout():
                connect_s = self._settings.connect_timeout_s
                return RequestFailed(f"its server took no connection within {connect_s:g} s", passing=True)
            case httpcore.TimeoutException():
                return RequestFailed(f"its server sent nothing for {self._settings.read_timeout_s:g} s")
            case _:
                return RequestFailed("its server broke the connection off before it was complete", passing=True)


def origin(url: httpx.URL) -> tuple[str, str, int]:
    """Scheme, host and port: who is asked."""
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}[url.scheme]


def _in_chain(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether `error` came from one of this kind."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None
