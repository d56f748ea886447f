"""Stores files by key in a local folder, or in a bucket of S3, Google Cloud Storage or Azure."""

import asyncio
import logging
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from serve.errors import StorageFailed, StorageUnavailable

CHUNK_BYTES = 2**20
MAX_RETRIES, RETRY_TIMEOUT_S = 5, 120

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    size_bytes: int
    etag: str
    """With its quotation marks."""


class ObjectStore:
    """`url` is `file:///folder`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.

    The credentials of buckets come from the environment variables of their own tools. A key has a content only once it
    is complete. Methods that read raise `FileNotFoundError` for a key without a content, and `StorageUnavailable`.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        # `obstore.sign_async` takes only the stores of buckets.
        self._store: Any
        if self.folder is not None:
            self._store = LocalStore(self.folder, mkdir=True)
            return
        # Options of the HTTP client would replace those of the environment. Its own timeouts are 5 s and 30 s.
        retry_timeout = timedelta(seconds=RETRY_TIMEOUT_S)
        self._store = from_url(url, retry_config={"max_retries": MAX_RETRIES, "retry_timeout": retry_timeout})

    async def put(self, key: str, content: bytes, media_type: str, file_name: str) -> None:
        """Raises `StorageFailed`. The last two are for clients that read the bucket."""
        with _write_errors(key):
            await obstore.put_async(self._store, key, content, attributes=self._attributes(media_type, file_name))

    async def put_chunks(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Stores what `chunks` yields. Raises `StorageFailed`, and what `chunks` raises."""
        with _write_errors(key):
            await obstore.put_async(self._store, key, chunks)

    async def head(self, key: str) -> ObjectInfo:
        with _read_errors(key):
            meta = await obstore.head_async(self._store, key)
        return ObjectInfo(meta["size"], meta["e_tag"] or f'"{meta["last_modified"].timestamp()}-{meta["size"]}"')

    async def read(self, key: str) -> bytes:
        with _read_errors(key):
            result = await obstore.get_async(self._store, key)
            return bytes(await result.bytes_async())

    async def open(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, but without, `end`, in chunks."""
        with _read_errors(key):
            if start == end:
                result = await obstore.get_async(self._store, key)
            else:
                result = await obstore.get_async(self._store, key, options={"range": (start, end)})
        return _chunks(key, result)

    async def presigned_url(self, key: str, max_age_s: float) -> str | None:
        """A URL of the bucket that anyone may read for `max_age_s`; None for a local folder."""
        if self.folder is not None:
            return None
        with _read_errors(key):
            url: str = await obstore.sign_async(self._store, "GET", key, timedelta(seconds=max_age_s))
        return url

    async def delete_folder(self, prefix: str) -> None:
        """Deletes all files whose keys begin with `prefix/`. Raises `StorageUnavailable`."""
        with _read_errors(prefix):
            if self.folder is not None:
                # Incomplete files of a process that was killed are removed too.
                await asyncio.to_thread(shutil.rmtree, self.folder / prefix, ignore_errors=True)
                return
            async for batch in obstore.list(self._store, f"{prefix}/"):
                await obstore.delete_async(self._store, [meta["path"] for meta in batch])

    async def folders(self, parent: str, older_than: datetime) -> list[str]:
        """The names of the folders in `parent` in which nothing was stored since `older_than`.

        Raises `StorageUnavailable`.
        """
        with _read_errors(parent):
            if self.folder is not None:
                return await asyncio.to_thread(_local_folders, self.folder / parent, older_than.timestamp())
            newest: dict[str, datetime] = {}
            async for batch in obstore.list(self._store, f"{parent}/"):
                for meta in batch:
                    name = meta["path"].removeprefix(f"{parent}/").partition("/")[0]
                    newest[name] = max(meta["last_modified"], newest.get(name, meta["last_modified"]))
        return [name for name, modified_at in newest.items() if modified_at < older_than]

    @asynccontextmanager
    async def local_copy(self, key: str) -> AsyncGenerator[Path, None]:
        """A local file with the content, which must not be changed. It may be deleted when the block ends."""
        if self.folder is not None:
            yield self.folder / key
            return
        info = await self.head(key)
        chunks = await self.open(key, 0, info.size_bytes)
        with tempfile.NamedTemporaryFile(prefix="flux-serve-") as file:
            async for chunk in chunks:
                await asyncio.to_thread(file.write, chunk)
            file.flush()
            yield Path(file.name)

    def _attributes(self, media_type: str, file_name: str) -> Any:
        """A local folder has no place for them."""
        if self.folder is not None:
            return None
        return {"Content-Type": media_type, "Content-Disposition": f'inline; filename="{file_name}"'}


def _local_folders(parent: Path, older_than_s: float) -> list[str]:
    """Includes those that have only the incomplete files of a process that was killed."""
    names = []
    for path in parent.iterdir() if parent.exists() else ():
        with suppress(FileNotFoundError):  # It was deleted meanwhile.
            if path.stat().st_mtime < older_than_s:
                names.append(path.name)
    return names


async def _chunks(key: str, result: Any) -> AsyncGenerator[bytes, None]:
    with _read_errors(key):
        async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
            yield bytes(chunk)


@contextmanager
def _write_errors(key: str) -> Iterator[None]:
    try:
        yield
    except (OSError, BaseError) as error:
        log.exception("could not store %s", key)
        raise StorageFailed from error


@contextmanager
def _read_errors(key: str) -> Iterator[None]:
    """The messages of `obstore` have paths and addresses, which callers must not see."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError from None
    except (OSError, BaseError) as error:
        log.exception("could not read %s", key)
        raise StorageUnavailable from error
