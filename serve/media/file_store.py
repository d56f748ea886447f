"""Stores uploaded files in a local folder, bounded by age, number and total size, with their records in memory.

When space is needed, the oldest files are removed first. A restart loses all files.
"""

import asyncio
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import dropwhile, islice
from pathlib import Path
from typing import IO, Any, TypeVar

from serve.errors import NotFound, UploadsFull
from serve.media.store_folder import StoreFolder
from serve.settings import FileSettings

CONTENT_NAME = re.compile(r"[0-9a-f]{32}\.file")
COPY_CHUNK_BYTES = 2**20
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class FileDescription:
    """What the caller says about a file. It is never used as a path."""

    name: str
    content_type: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    path: Path
    """The content. It is deleted when the file is removed."""
    description: FileDescription
    owner: str
    size_bytes: int
    sha256: str
    created_s: float
    """Seconds since 1970."""
    expires_s: float


class Upload:
    """A file that is being received. Its bytes count towards the limits of its store."""

    def __init__(self, store: "FileStore") -> None:
        self._store = store
        self.received_bytes = 0

    async def grow(self, size_bytes: int) -> None:
        """Counts received bytes and removes the oldest files to make room.

        Raises `UploadsFull` if the uploads in progress alone are over a limit.
        """
        self.received_bytes += size_bytes
        self._store.check_uploads()
        await self._store.sweep()

    async def save(self, content: IO[bytes], description: FileDescription, owner: str = "") -> StoredFile:
        """Stores `content`. Nothing is left on disk if this fails or is cancelled."""
        return await self._store.save(self, content, description, owner)


class FileStore:
    """An instance belongs to one event loop, and its folder to one instance.

    Without a folder, a temporary one is used and removed by `aclose`. `now` returns seconds since 1970. Methods with an
    id raise `NotFound` for a file that has expired or was removed, and for one of another `owner` if that is given.
    """

    def __init__(self, settings: FileSettings, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._now = now
        self._files: dict[str, StoredFile] = {}
        """By id, the oldest first."""
        self._uploads: set[Upload] = set()
        self._store_folder = StoreFolder(settings.folder, "flux-serve-files-")
        self._folder = self._store_folder.path
        _remove_contents(self._folder)

    @contextmanager
    def upload(self) -> Iterator[Upload]:
        """Counts an upload while the block runs."""
        upload = Upload(self)
        self._uploads.add(upload)
        try:
            yield upload
        finally:
            self._uploads.discard(upload)

    async def save(self, upload: Upload, content: IO[bytes], description: FileDescription, owner: str) -> StoredFile:
        """Stores `content` and ends `upload`."""
        file_id = secrets.token_hex(16)
        path = self._folder / f"{file_id}.file"
        copying = asyncio.ensure_future(asyncio.to_thread(_copy, content, path))
        try:
            size_bytes, sha256 = await asyncio.shield(copying)
        except BaseException:
            # A thread cannot be cancelled: what it still writes is removed when it has ended.
            copying.add_done_callback(lambda _: path.unlink(missing_ok=True))
            raise
        created_s = self._now()
        expires_s = created_s + self._settings.max_age_s
        file = StoredFile(file_id, path, description, owner, size_bytes, sha256, created_s, expires_s)
        self._files[file_id] = file
        self._uploads.discard(upload)
        return file

    async def get(self, file_id: str, owner: str | None = None) -> StoredFile:
        file = self._files.get(file_id)
        if file is None or file.expires_s <= self._now() or owner not in (None, file.owner):
            raise self._not_found(file_id)
        return file

    async def page(self, before: str | None, limit: int, owner: str | None = None) -> list[StoredFile]:
        """Up to `limit` files, newest first, older than the file `before` if given."""
        newest_first: Iterator[StoredFile] = reversed(self._files.values())
        if before is not None:
            start = await self.get(before, owner)
            newest_first = dropwhile(lambda file: file is not start, newest_first)
            next(newest_first)
        now_s = self._now()
        shown = (file for file in newest_first if file.expires_s > now_s and owner in (None, file.owner))
        return list(islice(shown, limit))

    async def delete(self, file_id: str, owner: str | None = None) -> None:
        await self._remove([await self.get(file_id, owner)])

    async def path(self, file_id: str) -> Path:
        return (await self.get(file_id)).path

    async def stat(self, file_id: str, owner: str | None = None) -> tuple[StoredFile, os.stat_result]:
        file = await self.get(file_id, owner)
        return file, await self._on_disk(file, file.path.stat)

    async def read(self, file_id: str) -> bytes:
        file = await self.get(file_id)
        return await self._on_disk(file, file.path.read_bytes)

    def check_uploads(self) -> None:
        """Raises `UploadsFull` if the uploads in progress alone are over a limit."""
        if len(self._uploads) > self._settings.max_files or self._uploading_bytes() > self._settings.max_bytes:
            raise UploadsFull

    async def sweep(self) -> None:
        """Removes files that are too old, then the oldest ones until the rest and the uploads are within the limits."""
        now_s = self._now()
        count = len(self._uploads) + len(self._files)
        size_bytes = self._uploading_bytes() + sum(file.size_bytes for file in self._files.values())
        removed = []
        for file in self._files.values():
            is_within = count <= self._settings.max_files and size_bytes <= self._settings.max_bytes
            if is_within and file.expires_s > now_s:
                break
            removed.append(file)
            count -= 1
            size_bytes -= file.size_bytes
        await self._remove(removed)

    async def aclose(self) -> None:
        """Removes the temporary folder, if one is used."""
        await self._store_folder.aclose()

    def _uploading_bytes(self) -> int:
        return sum(upload.received_bytes for upload in self._uploads)

    async def _remove(self, files: list[StoredFile]) -> None:
        for file in files:
            del self._files[file.id]
        if files:
            await asyncio.to_thread(_unlink, [file.path for file in files])

    async def _on_disk(self, file: StoredFile, call: Callable[[], Result]) -> Result:
        """Runs `call` in a thread. Raises `NotFound` if it finds that the content was removed meanwhile."""
        try:
            return await asyncio.to_thread(call)
        except FileNotFoundError:
            raise self._not_found(file.id) from None

    def _not_found(self, file_id: str) -> NotFound:
        return NotFound(
            f"there is no file {file_id[:64]!r}: it was removed, or it has expired;"
            f" files are kept for at most {self._settings.max_age_s / 3600:g} hours, so upload it again"
        )


def _copy(content: IO[bytes], path: Path) -> tuple[int, str]:
    """Copies `content` to `path`, and returns its size in bytes and its SHA-256."""
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("xb") as file:
        while chunk := content.read(COPY_CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            size_bytes += len(chunk)
    return size_bytes, digest.hexdigest()


def _unlink(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _remove_contents(folder: Path) -> None:
    """Removes what an earlier process left; files of other names are not touched."""
    for path in folder.iterdir():
        if CONTENT_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)
