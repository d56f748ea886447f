"""Downloads LoRA files: bounded, resumable and checksummed."""

import asyncio
import hashlib
import json
import logging
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
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

FLUSHED_BYTES = 2**20
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class PartialDownload:
    """What has arrived of a download; `path` is its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.etag: str | None = None
        """How the server tells this content from another."""
        self.received = 0
        self._hash = hashlib.sha256()
        self._waiting = bytearray()

    @property
    def sha256(self) -> str:
        """Of all that was flushed."""
        return self._hash.hexdigest()

    def resume_headers(self) -> dict[str, str]:
        """The headers that ask for what is missing, where the server has a tag by which it can be trusted to go on."""
        if not self.received or not self.etag or self.etag.startswith("W/"):
            return {}
        return {"Range": f"bytes={self.received}-", "If-Range": self.etag}

    def start(self, answer: Response) -> int | None:
        """Takes up where `answer` does: at what is missing, or at the beginning. Returns the bytes of the whole.

        Raises `Failure` for an answer with another part.
        """
        if answer.status != PARTIAL_CONTENT:
            self.reset()
            self.etag = answer.headers.get("etag") or answer.headers.get("last-modified")
            length = answer.headers.get("content-length")
            return int(length) if length else None
        match = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if not match or int(match[1]) != self.received:
            self.reset()
            raise RequestFailed("its server sent another part than it was asked for", passing=True)
        return None if match[2] == "*" else int(match[2])

    async def append(self, chunk: bytes) -> None:
        self._waiting += chunk
        self.received += len(chunk)
        if len(self._waiting) >= FLUSHED_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Brings what was added to the file. Raises `OSError`."""
        waiting, self._waiting = self._waiting, bytearray()
        await asyncio.to_thread(self._append, waiting)

    def reset(self) -> None:
        """Drops all that has arrived."""
        self.path.unlink(missing_ok=True)
        self.etag, self.received = None, 0
        self._hash, self._waiting = hashlib.sha256(), bytearray()

    def _append(self, content: bytearray) -> None:
        # Opened each time: a thread whose caller was cancelled must not write to what is another file by now.
        with self.path.open("ab") as file:
            file.write(content)
        self._hash.update(content)


MAX_DOCUMENT_BYTES = 16 * 2**20

Progress = Callable[[int, int | None], None]
"""Called with the bytes that arrived, and with how many there will be where that is known."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Download:
    """What a download turned out to be."""

    etag: str | None
    """How its server tells one content from another, for asking whether it is still the same."""
    size_bytes: int
    sha256: str


class Downloader:
    """`settings.fetch.max_concurrent` downloads at once; others wait for their turn, and their clock starts with it.

    `resolver` and `tls` replace the system's name service and trusted certificates.
    """

    def __init__(
        self, settings: LoraSettings, resolver: Resolver | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._bounds = settings.fetch
        self._transport = HttpClient(settings.fetch, resolver, tls, name="lora.fetch", downgrade=settings.allow_http)
        self._slots = asyncio.Semaphore(settings.fetch.max_concurrent)

    async def fetch_json(self, address: RemoteFile, shown: str) -> Any:
        """The JSON at an address, small enough for memory. Raises `FetchFailed` for the LoRA that is `shown`."""

        async def attempt() -> bytes:
            async with self._get(address, {}) as answer:
                if answer.status != OK:
                    raise answer.status_error(address.provider.hint(answer.status, answer.headers))
                return b"".join([chunk async for chunk in answer.body(MAX_DOCUMENT_BYTES)])

        async with self._bounded(shown):
            content = await self._transport.with_retries(attempt)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise FetchFailed(shown, f"{address.provider.name} answered with something that is no JSON") from error

    async def save(
        self,
        address: RemoteFile,
        path: Path,
        shown: str,
        known_tag: str | None = None,
        progress: Progress | None = None,
    ) -> Download | None:
        """Brings the bytes to `path`, which appears with all of them; None if they are still those of `known_tag`.

        What is unfinished is left beside `path`. Raises `FetchFailed` for the LoRA that is `shown`.
        """
        partial = PartialDownload(path.with_name(f"{path.name}.part"))
        async with self._slots, self._bounded(shown):
            size = await self._transport.with_retries(lambda: self._attempt(address, partial, known_tag, progress))
            if size is None:
                return None
            await asyncio.to_thread(os.replace, partial.path, path)
            return Download(partial.etag, size, partial.sha256)

    def close(self) -> None:
        """Lets go of the threads that resolve names. Downloads that run are not waited for."""
        self._transport.close()

    def _get(self, address: RemoteFile, headers: Mapping[str, str]) -> AbstractAsyncContextManager[Response]:
        url = parse_url(address.url)
        return self._transport.get(url, headers, address.provider.auth_headers(url))

    @asynccontextmanager
    async def _bounded(self, shown: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._bounds.total_timeout_s):
                yield
        except TimeoutError as error:
            raise FetchFailed(shown, f"it was not complete after {self._bounds.total_timeout_s:g} s") from error
        except RequestFailed as failure:
            raise FetchFailed(shown, failure.reason) from failure
        except InvalidUrl as error:
            raise FetchFailed(shown, str(error)) from error
        except OSError as error:
            log.exception("%s could not be stored", shown)
            raise FetchFailed(shown, "it could not be stored; the operator's log has the cause") from error

    async def _attempt(
        self, address: RemoteFile, partial: PartialDownload, known_tag: str | None, progress: Progress | None
    ) -> int | None:
        """Bytes in the file, when they are all there; None if they are those of `known_tag`."""
        asked = partial.resume_headers() or (_unless(known_tag) if known_tag else {})
        async with self._get(address, asked) as answer:
            if answer.status == NOT_MODIFIED and known_tag and "Range" not in asked:
                return None
            self._check_head(answer, address, partial)
            total = partial.start(answer)
            async for chunk in answer.body(self._bounds.max_bytes, partial.received):
                await partial.append(chunk)
                if progress:
                    progress(partial.received, total)
        await partial.flush()
        if address.sha256 and partial.sha256 != address.sha256:
            partial.reset()
            raise RequestFailed(f"its checksum is not the one that {address.provider.name} lists", passing=True)
        return partial.received

    def _check_head(self, answer: Response, address: RemoteFile, partial: PartialDownload) -> None:
        if answer.status == REQUESTED_RANGE_NOT_SATISFIABLE and partial.received:
            partial.reset()
            raise RequestFailed("its server does not go on where it broke off", passing=True)
        if answer.status not in (OK, PARTIAL_CONTENT):
            raise answer.status_error(address.provider.hint(answer.status, answer.headers))
        is_page = answer.headers.get("content-type", "").startswith("text/html")
        if is_page and answer.url.path.rstrip("/").endswith("/login"):
            raise RequestFailed(f"its server asks to sign in; {address.provider.sign_in_hint}")


def _unless(tag: str) -> Mapping[str, str]:
    """The header that asks for content only if it is another than that of `tag`: an entity tag, or a date."""
    return {"If-None-Match" if tag.endswith('"') else "If-Modified-Since": tag}
