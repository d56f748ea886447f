"""Stores uploaded files, bounded by age, number and total size, for all processes of the service.

Their records are in the database, their contents in the object store. When space is needed, the oldest files are
removed first. The content of a file is deleted before its record, so that nothing is forgotten if a process is lost.
"""

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from sqlalchemy import Connection

from serve.database.connection import Database
from serve.errors import DatabaseUnavailable, NotFound, StorageUnavailable, UploadTimedOut
from serve.media import file_rows as rows
from serve.media.file_rows import FileDescription, StoredFile
from serve.media.object_store import ObjectStore
from serve.settings import FileSettings

COPY_CHUNK_BYTES = 2**20
RECORD_STEP_BYTES = 16 * 2**20
"""The record of an upload in progress lags behind by less than this."""
SAVE_TIME_S = 600
"""For copying a received file to the store. After this time and that of an upload, a process is taken for lost."""
BATCH = 100
FILE_ID = re.compile(r"[0-9a-f]{32}")

log = logging.getLogger(__name__)


class Upload:
    """A file that is being received. Its bytes count towards the limits of its store."""

    def __init__(self, store: "FileStore") -> None:
        self._store = store
        self.id = secrets.token_hex(16)
        self.received_bytes = 0
        self.recorded_bytes: int | None = None
        """None without a record."""
        self.is_stored = False
        self.copying: asyncio.Task[tuple[int, str]] | None = None

    async def grow(self, size_bytes: int) -> None:
        """Counts received bytes and removes the oldest files to make room.

        Raises `UploadsFull` if the uploads in progress alone are over a limit, and `DatabaseUnavailable`.
        """
        self.received_bytes += size_bytes
        if self.recorded_bytes is None or self.received_bytes - self.recorded_bytes >= RECORD_STEP_BYTES:
            await self._store.record(self)

    async def save(self, content: IO[bytes], description: FileDescription, owner: str = "") -> StoredFile:
        """Stores `content`. Nothing is kept if this fails or is cancelled."""
        return await self._store.save(self, content, description, owner)


class FileStore:
    """`now` returns seconds since 1970.

    Methods with an id raise `NotFound` for a file that has expired or was removed, and for one of another `owner` if
    that is given. All methods raise `DatabaseUnavailable`, and those that read or delete contents `StorageUnavailable`.
    """

    def __init__(
        self, settings: FileSettings, database: Database, store: ObjectStore, now: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._now = now
        self._discarding: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def upload(self) -> AsyncGenerator[Upload, None]:
        """Counts an upload while the block runs."""
        upload = Upload(self)
        try:
            yield upload
        finally:
            if not upload.is_stored and (upload.recorded_bytes is not None or upload.copying is not None):
                # In a task of its own, because this one may have been cancelled.
                task = asyncio.get_running_loop().create_task(self._discard(upload))
                self._discarding.add(task)
                task.add_done_callback(self._discarding.discard)
                if upload.copying is None or upload.copying.done():
                    await asyncio.shield(task)

    async def record(self, upload: Upload) -> None:
        """Records the size of an upload, and makes room for it. Raises `UploadsFull` and `UploadTimedOut`."""
        now_s, size_bytes, is_new = self._now(), upload.received_bytes, upload.recorded_bytes is None
        end_s = now_s + self._settings.upload_timeout_s + SAVE_TIME_S

        def work(connection: Connection) -> list[str]:
            rows.lock(connection)
            if is_new:
                rows.insert_upload(connection, upload.id, size_bytes, now_s, end_s)
            elif not rows.update_upload(connection, upload.id, size_bytes, end_s):
                raise UploadTimedOut(self._settings.upload_timeout_s)
            return rows.make_room(connection, self._settings, now_s)

        # Before the call, because a transaction is committed even if its caller is cancelled.
        upload.recorded_bytes = size_bytes
        removed = await self._database.write(work)
        await self._try_delete(removed)

    async def save(self, upload: Upload, content: IO[bytes], description: FileDescription, owner: str) -> StoredFile:
        """Stores `content` and ends `upload`. Raises `UploadsFull`, `UploadTimedOut` and `StorageFailed`."""
        upload.copying = asyncio.get_running_loop().create_task(self._copy(content, content_key(upload.id)))
        upload.received_bytes, sha256 = await asyncio.shield(upload.copying)
        await self.record(upload)
        created_s = self._now()
        expires_s = created_s + self._settings.max_age_s
        file = StoredFile(upload.id, description, owner, upload.received_bytes, sha256, created_s, expires_s)
        if not await self._database.write(lambda connection: rows.write_stored(connection, file)):
            raise UploadTimedOut(self._settings.upload_timeout_s)
        upload.is_stored = True
        return file

    async def get(self, file_id: str, owner: str | None = None) -> StoredFile:
        now_s = self._now()
        if FILE_ID.fullmatch(file_id):
            file = await self._database.read(lambda connection: rows.read_file(connection, file_id, now_s))
            if file is not None and owner in (None, file.owner):
                return file
        raise self.not_found(file_id)

    async def page(self, before: str | None, limit: int, owner: str | None = None) -> list[StoredFile]:
        """Up to `limit` files, newest first, older than the file `before` if given."""
        older_than = None if before is None else await self.get(before, owner)
        now_s = self._now()
        return await self._database.read(lambda connection: rows.read_page(connection, older_than, limit, now_s, owner))

    async def delete(self, file_id: str, owner: str | None = None) -> None:
        await self.get(file_id, owner)
        await self._database.write(lambda connection: rows.mark_removed(connection, file_id))
        await self._try_delete([file_id])

    async def read(self, file_id: str) -> bytes:
        file = await self.get(file_id)
        try:
            return await self._store.read(content_key(file.id))
        except FileNotFoundError:
            raise self.not_found(file_id) from None

    @asynccontextmanager
    async def local_copy(self, file_id: str) -> AsyncGenerator[Path, None]:
        """A local file with the content, while the block runs."""
        file = await self.get(file_id)
        try:
            async with self._store.local_copy(content_key(file.id)) as path:
                yield path
        except FileNotFoundError:
            raise self.not_found(file_id) from None

    async def sweep(self) -> None:
        """Removes files that have expired, and what lost processes have left."""
        now_s = self._now()
        await self._database.write(lambda connection: rows.mark_expired(connection, now_s))
        while removed := await self._database.read(lambda connection: rows.removed_ids(connection, BATCH)):
            await self._delete(removed)

    async def aclose(self) -> None:
        """Waits until the contents of failed uploads are deleted."""
        await asyncio.gather(*self._discarding, return_exceptions=True)

    async def _discard(self, upload: Upload) -> None:
        if upload.copying is not None:
            # It ends soon, because its file is closed at the end of the request. What it still writes is deleted.
            await asyncio.gather(upload.copying, return_exceptions=True)
        # Otherwise, the upload expires and is swept.
        with suppress(DatabaseUnavailable):
            await self._database.write(lambda connection: rows.mark_removed(connection, upload.id))
            await self._try_delete([upload.id])

    async def _try_delete(self, removed: Sequence[str]) -> None:
        """Like `_delete`; `sweep` deletes later what cannot be deleted now."""
        try:
            await self._delete(removed)
        except (DatabaseUnavailable, StorageUnavailable):
            log.warning("the contents of %d removed files are deleted later", len(removed))

    async def _delete(self, removed: Sequence[str]) -> None:
        """Deletes the contents, and then the records, of files that are marked as removed."""
        for file_id in removed:
            await self._store.delete_folder(f"files/{file_id}")
        if removed:
            await self._database.write(lambda connection: rows.delete_rows(connection, removed))

    async def _copy(self, content: IO[bytes], key: str) -> tuple[int, str]:
        """Copies `content` to the store, and returns its size in bytes and its SHA-256."""
        digest, size_bytes = hashlib.sha256(), 0

        def read() -> bytes:
            chunk = content.read(COPY_CHUNK_BYTES)
            digest.update(chunk)
            return chunk

        async def chunks() -> AsyncGenerator[bytes, None]:
            nonlocal size_bytes
            while chunk := await asyncio.to_thread(read):
                size_bytes += len(chunk)
                yield chunk

        await self._store.put_chunks(key, chunks())
        return size_bytes, digest.hexdigest()

    def not_found(self, file_id: str) -> NotFound:
        return NotFound(
            f"there is no file {file_id[:64]!r}: it was removed, or it has expired;"
            f" files are kept for at most {self._settings.max_age_s / 3600:g} hours, so upload it again"
        )


def content_key(file_id: str) -> str:
    """The key of the content of a file. `file_id` must be that of a file."""
    return f"files/{file_id}/content"
