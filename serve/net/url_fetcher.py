"""Fetches input images from URLs."""

import asyncio
import ssl
from http.client import FORBIDDEN, OK, UNAUTHORIZED

import httpx

from serve.errors import FetchFailed
from serve.net.http_client import HttpClient, RequestFailed
from serve.net.ssrf_guard import Resolver
from serve.net.url import InvalidUrl, display_url, parse_url
from serve.settings import FetchSettings

SIGN_IN = "it must be readable without signing in"


class UrlFetcher:
    """Fetches URLs, `settings.max_concurrent` at once; others wait for their turn, and their clock starts with it.

    `resolver` and `tls` replace the system's name service and trusted certificates. Raises `ValueError` for settings
    that mean nothing.
    """

    def __init__(
        self, settings: FetchSettings, resolver: Resolver | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._settings = settings
        self._transport = HttpClient(settings, resolver, tls)
        self._slots = asyncio.Semaphore(settings.max_concurrent)

    async def fetch(self, text: str) -> bytes:
        """The content of the URL `text`. Raises `FetchFailed`."""
        try:
            url = parse_url(text)
        except InvalidUrl as error:
            raise FetchFailed(display_url(text), str(error)) from error
        async with self._slots:
            try:
                async with asyncio.timeout(self._settings.total_timeout_s):
                    return await self._transport.with_retries(lambda: self._content(url))
            except TimeoutError as error:
                why = f"it was not complete after {self._settings.total_timeout_s:g} s"
                raise FetchFailed(display_url(url), why) from error
            except RequestFailed as failure:
                raise FetchFailed(display_url(url), failure.reason) from failure

    async def aclose(self) -> None:
        """Lets go of the threads that resolve names. Fetches that run are not waited for."""
        self._transport.close()

    async def _content(self, url: httpx.URL) -> bytes:
        async with self._transport.get(url) as answer:
            if answer.status != OK:
                raise answer.status_error(SIGN_IN if answer.status in (UNAUTHORIZED, FORBIDDEN) else "")
            content = bytearray()
            async for chunk in answer.body(self._settings.max_bytes):
                content += chunk
            return bytes(content)
