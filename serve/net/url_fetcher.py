"""Fetches the content of URLs from callers, a limited number at once."""

import asyncio
from http.client import FORBIDDEN, OK, UNAUTHORIZED

import httpx

from serve.errors import FetchFailed
from serve.net.http_client import HttpClient, RequestFailed
from serve.net.url import InvalidUrl, display_url, parse_url
from serve.settings import FetchSettings

SIGN_IN_HINT = "it must be readable without signing in"


class UrlFetcher:
    """Fetches up to `settings.max_concurrent` URLs at once through `client`, which the caller closes.

    Further fetches wait, and `settings.total_timeout_s` does not include the wait.
    """

    def __init__(self, settings: FetchSettings, client: HttpClient) -> None:
        self._settings = settings
        self._client = client
        self._slots = asyncio.Semaphore(settings.max_concurrent)

    async def fetch(self, text: str) -> bytes:
        """Returns the content of the URL `text`. Raises `FetchFailed`."""
        try:
            url = parse_url(text)
        except InvalidUrl as error:
            raise FetchFailed(display_url(text), str(error)) from error
        async with self._slots:
            try:
                async with asyncio.timeout(self._settings.total_timeout_s):
                    return await self._client.with_retries(lambda: self._download(url))
            except TimeoutError as error:
                reason = f"it was not complete after {self._settings.total_timeout_s:g} s"
                raise FetchFailed(display_url(url), reason) from error
            except RequestFailed as error:
                raise FetchFailed(display_url(url), error.reason) from error

    async def _download(self, url: httpx.URL) -> bytes:
        async with self._client.get(url) as response:
            if response.status != OK:
                hint = SIGN_IN_HINT if response.status in (UNAUTHORIZED, FORBIDDEN) else ""
                raise response.status_error(hint)
            content = bytearray()
            async for chunk in response.body(self._settings.max_bytes):
                content += chunk
            return bytes(content)
