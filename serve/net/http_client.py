"""HTTP client for URLs from callers: SSRF guard on every redirect, size limits, timeouts and retries.

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
DEFAULT_PORTS = {"http": 80, "https": 443}
NO_HEADERS: Mapping[str, str] = MappingProxyType({})

Result = TypeVar("Result")


class RequestFailed(Exception):
    """A request failed. Callers may see `reason`; if `retryable`, another attempt may succeed."""

    def __init__(self, reason: str, retryable: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Response:
    """The head of a response that is not a redirect; its body can be read until the request is closed."""

    url: httpx.URL
    """The final URL after all redirects."""
    status: int
    headers: httpx.Headers
    _raw: httpcore.Response

    async def body(self, max_bytes: int, received_bytes: int = 0) -> AsyncIterator[bytes]:
        """Yields the body in chunks.

        Raises `RequestFailed` beyond `max_bytes`, whatever Content-Length says, and for a compressed body, which could
        be a decompression bomb. `received_bytes` counts towards the limit: the size of the part that an earlier
        response delivered, if this one resumes it.
        """
        if self.headers.get("content-encoding", "").lower() in COMPRESSIONS:
            raise RequestFailed("its server sent a compressed response, which is not accepted")
        too_large = RequestFailed(f"it has more than {max_bytes} bytes")
        # httpcore has checked that Content-Length, if present, is a number.
        if received_bytes + int(self.headers.get("content-length", 0)) > max_bytes:
            raise too_large
        async for chunk in self._raw.aiter_stream():
            received_bytes += len(chunk)
            if received_bytes > max_bytes:
                raise too_large
            yield chunk

    def status_error(self, hint: str = "") -> RequestFailed:
        """Returns the error for a status other than success; `hint` tells the caller what to do about it."""
        reason = f"its server answered {self.status} {responses.get(self.status, '')}".rstrip()
        return RequestFailed(f"{reason}; {hint}" if hint else reason, retryable=self.status in RETRYABLE_STATUSES)


class HttpClient:
    """Sends requests within the limits of `settings`.

    `resolver` and `tls` replace the system's DNS resolver and trusted certificates. `settings_name` is the path
    of `settings` in the configuration, for error messages. Redirects from https to http are refused unless
    `allow_downgrade` is set. Raises `ValueError` for an invalid entry in `settings.allowed_hosts`.
    """

    def __init__(
        self,
        settings: FetchSettings,
        resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
        *,
        settings_name: str = "fetch",
        allow_downgrade: bool = True,
    ) -> None:
        self._settings = settings
        self._resolver = resolver or SystemResolver(settings.max_concurrent)
        self._network = GuardedNetworkBackend(AllowedHosts(settings.allowed_hosts), self._resolver)
        self._tls = tls or httpcore.default_ssl_context()
        self._name = settings_name
        self._downgrade = allow_downgrade

    @asynccontextmanager
    async def get(
        self, url: httpx.URL, headers: Mapping[str, str] = NO_HEADERS, secret_headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncIterator[Response]:
        """Sends a GET request and follows its redirects.

        `headers` are sent with every request. `secret_headers` are headers that only the origin of `url` receives:
        they are dropped at the first redirect to another origin, even if a later one leads back. Raises
        `RequestFailed`, also from the body of the `async with` statement if the connection breaks while the response
        is read.
        """
        first_origin, prefix = origin(url), ""
        for _ in range(self._settings.max_redirects + 1):
            async with self._request(url, {**headers, **secret_headers}, prefix) as response:
                if response.status not in REDIRECT_STATUSES or "location" not in response.headers:
                    yield response
                    return
                location = response.headers["location"]
            prefix = "after a redirect, "
            url = self._redirect_target(url, location, prefix)
            if origin(url) != first_origin:
                secret_headers = NO_HEADERS
        raise RequestFailed(f"it redirects more than {self._settings.max_redirects} times")

    async def post(self, url: httpx.URL, content: bytes, headers: Mapping[str, str]) -> int:
        """Sends a POST request and returns the status of the response. Redirects are not followed.

        The body of the response is not read. Raises `RequestFailed`.
        """
        async with self._request(url, headers, "", content, "POST") as response:
            return response.status

    async def put(self, url: httpx.URL, content: bytes, headers: Mapping[str, str]) -> str | None:
        """Sends a PUT request and returns the `Location` of the response. Redirects are not followed.

        Raises `RequestFailed`, also for a status other than success.
        """
        async with self._request(url, headers, "", content, "PUT") as response:
            if not 200 <= response.status < 300:
                raise response.status_error()
            location: str | None = response.headers.get("location")
            return location

    async def with_retries(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """Calls `attempt` until it succeeds, at most `settings.max_attempts` times, with growing random pauses.

        Raises the first `RequestFailed` that is not retryable, or the last one.
        """
        for number in range(1, self._settings.max_attempts):
            try:
                return await attempt()
            except RequestFailed as error:
                if not error.retryable:
                    raise
            pause_s = self._settings.backoff_s * 2 ** (number - 1)
            await asyncio.sleep(random.uniform(0.5, 1) * pause_s)
        return await attempt()

    def close(self) -> None:
        """Stops the threads that resolve host names. Requests in progress are not awaited."""
        self._resolver.close()

    def _redirect_target(self, url: httpx.URL, location: str, prefix: str) -> httpx.URL:
        try:
            target = parse_url(location, base=url)
        except InvalidUrl as error:
            raise RequestFailed(f"{prefix}{error}") from error
        if url.scheme == "https" and target.scheme == "http" and not self._downgrade:
            raise RequestFailed("it redirects from https to plain http, which is not allowed")
        return target

    @asynccontextmanager
    async def _request(
        self,
        url: httpx.URL,
        headers: Mapping[str, str],
        prefix: str,
        content: bytes | None = None,
        method: str = "GET",
    ) -> AsyncIterator[Response]:
        """Sends a request on a new connection. `prefix` starts the reasons of errors."""
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        all_headers = {
            "Host": url.netloc.decode("ascii"),
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": f"flux-serve/{__version__}",
            **headers,
        }
        read_s = self._settings.read_timeout_s
        timeouts = {"connect": self._settings.connect_timeout_s, "read": read_s, "write": read_s}
        try:
            async with (
                httpcore.AsyncHTTPConnection(target.origin, self._tls, network_backend=self._network) as connection,
                connection.stream(
                    method,
                    target,
                    headers=list(all_headers.items()),
                    content=content,
                    extensions={"timeout": timeouts},
                ) as response,
            ):
                yield Response(url, response.status, httpx.Headers(response.headers), response)
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
            failure = self._request_failed(error)
            raise RequestFailed(prefix + failure.reason, failure.retryable) from error

    def _request_failed(self, error: Exception) -> RequestFailed:
        """Describes an httpcore error without its message, which may contain addresses."""
        match error:
            case AddressNotPublic():
                setting = f"{self._name}.allowed_hosts"
                return RequestFailed(f"its address is not public; the operator can allow the host with {setting}")
            case UnknownHost():
                return RequestFailed("its host name could not be resolved", error.retryable)
            case httpcore.ConnectError() if _has_cause(error, ssl.SSLCertVerificationError):
                return RequestFailed("its server has no valid TLS certificate for this host")
            case httpcore.ConnectError() if _has_cause(error, ssl.SSLError):
                return RequestFailed("the TLS handshake with its server failed")
            case httpcore.ConnectError():
                return RequestFailed("its server refused the connection or is unreachable", retryable=True)
            case httpcore.ConnectTimeout():
                connect_s = self._settings.connect_timeout_s
                return RequestFailed(f"its server did not accept a connection within {connect_s:g} s", retryable=True)
            case httpcore.TimeoutException():
                return RequestFailed(f"its server sent nothing for {self._settings.read_timeout_s:g} s")
            case _:
                return RequestFailed("its server closed the connection early or sent invalid HTTP", retryable=True)


def origin(url: httpx.URL) -> tuple[str, str, int]:
    """Returns scheme, host and port of `url`, with the default port if it has none."""
    return url.scheme, url.host, url.port or DEFAULT_PORTS[url.scheme]


def _has_cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether `error`, or an exception that it was raised from, is a `kind`."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None
