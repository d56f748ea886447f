"""Downloads LoRA files: bounded, resumable and checksummed."""

import asyncio
import hashlib
import json
import logging
import os
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from http.client import NOT_MODIFIED, OK, PARTIAL_CONTENT, REQUESTED_RANGE_NOT_SATISFIABLE
from pathlib import Path
from typing import Any

from serve.errors import FetchFailed
from serve.lora.provider import RemoteFile
from serve.net.http_client import HttpClient, RequestFailed, Response
from serve.net.ssrf_guard import Resolver
from serve.net.url import InvalidUrl, parse_url
from serve.settings import LoraSettings

MAX_JSON_BYTES = 16 * 2**20
WRITE_BUFFER_BYTES = 2**20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DownloadedFile:
    etag: str | None
    """ETag or Last-Modified of the response, for a conditional request later."""
    size_bytes: int
    sha256: str


def create_http_client(
    settings: LoraSettings, resolver: Resolver | None = None, tls: ssl.SSLContext | None = None
) -> HttpClient:
    """The HTTP client for LoRA downloads; its owner closes it.

    `resolver` and `tls` replace the system's DNS resolver and trusted certificates.
    """
    return HttpClient(settings.fetch, resolver, tls, settings_name="lora.fetch", allow_downgrade=settings.allow_http)


class Downloader:
    """Runs up to `settings.fetch.max_concurrent` downloads at once. The timeout of a queued one starts when it runs."""

    def __init__(self, settings: LoraSettings, client: HttpClient) -> None:
        self._settings = settings.fetch
        self._client = client
        self._slots = asyncio.Semaphore(settings.fetch.max_concurrent)

    async def fetch_json(self, file: RemoteFile, display_name: str) -> Any:
        """The JSON document at `file.url`. Raises `FetchFailed` for the LoRA `display_name`."""

        async def attempt() -> bytes:
            async with self._get(file, {}) as response:
                if response.status != OK:
                    raise response.status_error(file.provider.error_hint(response.status, response.headers))
                return b"".join([chunk async for chunk in response.body(MAX_JSON_BYTES)])

        async with self._fetch_errors(display_name):
            content = await self._client.with_retries(attempt)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise FetchFailed(display_name, f"{file.provider.name} did not answer with JSON") from error

    async def download(
        self, file: RemoteFile, path: Path, display_name: str, known_etag: str | None = None
    ) -> DownloadedFile | None:
        """Downloads `file` to `path`, which exists only once it is complete. None if `known_etag` is still current.

        An unfinished download stays next to `path`. Raises `FetchFailed` for the LoRA `display_name`.
        """
        partial = PartialDownload(path.with_name(f"{path.name}.part"))
        async with self._slots, self._fetch_errors(display_name):
            size_bytes = await self._client.with_retries(lambda: self._attempt(file, partial, known_etag))
            if size_bytes is None:
                return None
            await asyncio.to_thread(os.replace, partial.path, path)
            return DownloadedFile(partial.etag, size_bytes, partial.sha256)

    def _get(self, file: RemoteFile, headers: Mapping[str, str]) -> AbstractAsyncContextManager[Response]:
        url = parse_url(file.url)
        return self._client.get(url, headers, file.provider.auth_headers(url))

    @asynccontextmanager
    async def _fetch_errors(self, display_name: str) -> AsyncIterator[None]:
        """Applies the total timeout and converts every expected error to `FetchFailed`."""
        try:
            async with asyncio.timeout(self._settings.total_timeout_s):
                yield
        except TimeoutError as error:
            why = f"the download did not finish within {self._settings.total_timeout_s:g} s"
            raise FetchFailed(display_name, why) from error
        except RequestFailed as failure:
            raise FetchFailed(display_name, failure.reason) from failure
        except InvalidUrl as error:
            raise FetchFailed(display_name, str(error)) from error
        except OSError as error:
            log.exception("Storing the LoRA %s failed", display_name)
            raise FetchFailed(display_name, "it could not be stored; the operator's log has the cause") from error

    async def _attempt(self, file: RemoteFile, partial: "PartialDownload", known_etag: str | None) -> int | None:
        """Downloads what is missing. Returns the size of the file in bytes; None if `known_etag` is still current."""
        headers = partial.resume_headers() or (_conditional_header(known_etag) if known_etag else {})
        async with self._get(file, headers) as response:
            if response.status == NOT_MODIFIED and known_etag and "Range" not in headers:
                return None
            _check_response(response, file, partial)
            partial.start(response)
            async for chunk in response.body(self._settings.max_bytes, partial.received_bytes):
                await partial.append(chunk)
        await partial.flush()
        if file.sha256 and partial.sha256 != file.sha256:
            partial.reset()
            raise RequestFailed(f"its checksum differs from the one that {file.provider.name} lists", retryable=True)
        return partial.received_bytes


class PartialDownload:
    """The part of a file received so far, at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.etag: str | None = None
        """ETag, or else Last-Modified, of the response that started the download."""
        self.received_bytes = 0
        self._hash = hashlib.sha256()
        self._buffer = bytearray()

    @property
    def sha256(self) -> str:
        """The checksum of everything flushed so far."""
        return self._hash.hexdigest()

    def resume_headers(self) -> dict[str, str]:
        """Headers that request the missing part; empty without a strong validator for the content."""
        if not self.received_bytes or not self.etag or self.etag.startswith("W/"):
            return {}
        return {"Range": f"bytes={self.received_bytes}-", "If-Range": self.etag}

    def start(self, response: Response) -> None:
        """Continues where `response` starts: at the missing part, or from scratch.

        Raises `RequestFailed` if the server sends another part.
        """
        if response.status != PARTIAL_CONTENT:
            self.reset()
            self.etag = response.headers.get("etag") or response.headers.get("last-modified")
            return
        content_range = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if not content_range or int(content_range[1]) != self.received_bytes:
            self.reset()
            raise RequestFailed("its server sent another range than requested", retryable=True)

    async def append(self, chunk: bytes) -> None:
        self._buffer += chunk
        self.received_bytes += len(chunk)
        if len(self._buffer) >= WRITE_BUFFER_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Writes the buffer to the file. Raises `OSError`."""
        content, self._buffer = self._buffer, bytearray()
        await asyncio.to_thread(self._write, content)

    def reset(self) -> None:
        """Discards everything received so far."""
        self.path.unlink(missing_ok=True)
        self.etag, self.received_bytes = None, 0
        self._hash, self._buffer = hashlib.sha256(), bytearray()

    def _write(self, content: bytearray) -> None:
        # Opened for each write: after a cancellation, this thread must not write through a handle to a replaced file.
        with self.path.open("ab") as file:
            file.write(content)
        self._hash.update(content)


def _check_response(response: Response, file: RemoteFile, partial: PartialDownload) -> None:
    """Raises `RequestFailed` unless the body of `response` is the file or a part of it."""
    if response.status == REQUESTED_RANGE_NOT_SATISFIABLE and partial.received_bytes:
        partial.reset()
        raise RequestFailed("its server cannot resume the download", retryable=True)
    if response.status not in (OK, PARTIAL_CONTENT):
        raise response.status_error(file.provider.error_hint(response.status, response.headers))
    is_html = response.headers.get("content-type", "").startswith("text/html")
    if is_html and response.url.path.rstrip("/").endswith("/login"):
        raise RequestFailed(f"its server redirects to a login page; {file.provider.auth_hint}")


def _conditional_header(etag: str) -> Mapping[str, str]:
    """Requests the content only if it changed. `etag` is an ETag or a Last-Modified date."""
    return {"If-None-Match" if etag.endswith('"') else "If-Modified-Since": etag}
