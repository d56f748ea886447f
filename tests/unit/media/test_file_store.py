"""Storage of uploaded files: limits on age, number and size, uploads in progress, and what is left on disk."""

import asyncio
import hashlib
import io
import threading
from pathlib import Path

import pytest

from serve.errors import NotFound, UploadsFull
from serve.media.file_store import FileDescription, FileStore, StoredFile
from serve.settings import FileSettings
from tests.fakes import FakeClock

DESCRIPTION = FileDescription("../../etc/passwd", "image/png", {})


def make_store(folder: Path, clock: FakeClock | None = None, **settings: int) -> FileStore:
    limits = {"folder": folder, "max_file_bytes": 10, "max_bytes": 100, **settings}
    return FileStore(FileSettings.model_validate(limits), clock or FakeClock(1_700_000_000.0))


async def store_file(store: FileStore, content: bytes) -> StoredFile:
    with store.upload() as upload:
        await upload.grow(len(content))
        return await upload.save(io.BytesIO(content), DESCRIPTION)


async def stored_ids(store: FileStore) -> list[str]:
    return [file.id for file in await store.page(None, 1000)]


def disk_bytes(folder: Path) -> list[int]:
    return sorted(path.stat().st_size for path in folder.iterdir())


async def test_stored_file_has_size_hash_and_times(tmp_path: Path) -> None:
    store = make_store(tmp_path, max_age_s=60)
    file = await store_file(store, b"content")
    assert (file.size_bytes, file.sha256) == (7, hashlib.sha256(b"content").hexdigest())
    assert (file.created_s, file.expires_s) == (1_700_000_000.0, 1_700_000_060.0)
    assert await store.read(file.id) == b"content"
    assert (await store.path(file.id)).parent == tmp_path


async def test_files_are_listed_newest_first(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    ids = [(await store_file(store, b"x")).id for _ in range(3)]
    assert await stored_ids(store) == ids[::-1]
    assert [file.id for file in await store.page(ids[2], 1)] == [ids[1]]
    with pytest.raises(NotFound):
        await store.page("unknown", 1)


@pytest.mark.parametrize("file_id", ["unknown", "", "../x", "0" * 32])
async def test_unknown_file_is_not_found(tmp_path: Path, file_id: str) -> None:
    store = make_store(tmp_path)
    for method in (store.get, store.read, store.path, store.delete):
        with pytest.raises(NotFound):
            await method(file_id)


async def test_deleted_file_is_removed_from_disk(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    file = await store_file(store, b"x")
    await store.delete(file.id)
    with pytest.raises(NotFound):
        await store.get(file.id)
    assert disk_bytes(tmp_path) == []


async def test_expired_file_is_not_found_and_removed_by_a_sweep(tmp_path: Path) -> None:
    clock = FakeClock()
    store = make_store(tmp_path, clock, max_age_s=60)
    old = await store_file(store, b"old")
    clock.elapsed_s = 30
    new = await store_file(store, b"new!")
    clock.elapsed_s = 60
    with pytest.raises(NotFound):
        await store.read(old.id)
    assert await stored_ids(store) == [new.id]
    await store.sweep()
    assert disk_bytes(tmp_path) == [4]


@pytest.mark.parametrize("limits", [{"max_files": 2}, {"max_bytes": 20}])
async def test_oldest_files_are_removed_when_a_limit_is_reached(tmp_path: Path, limits: dict[str, int]) -> None:
    store = make_store(tmp_path, None, **limits)
    ids = [(await store_file(store, b"x" * 10)).id for _ in range(4)]
    assert await stored_ids(store) == [ids[3], ids[2]]
    assert disk_bytes(tmp_path) == [10, 10]


async def test_bytes_of_uploads_in_progress_count(tmp_path: Path) -> None:
    store = make_store(tmp_path, max_bytes=20)
    old = await store_file(store, b"x" * 10)
    with store.upload() as first, store.upload() as second:
        await first.grow(10)
        assert await stored_ids(store) == [old.id]
        await second.grow(5)
        assert await stored_ids(store) == []
        with pytest.raises(UploadsFull):
            await second.grow(6)
    with store.upload() as third:
        await third.grow(20)


async def test_uploads_in_progress_are_limited_in_number(tmp_path: Path) -> None:
    store = make_store(tmp_path, max_files=1)
    with store.upload() as first, store.upload() as second:
        with pytest.raises(UploadsFull):
            await second.grow(1)
        del first


class FailingFile(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError


async def test_nothing_is_left_on_disk_if_the_content_cannot_be_copied(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with store.upload() as upload, pytest.raises(OSError):  # noqa: PT011 - any
        await upload.save(FailingFile(), DESCRIPTION)
    await asyncio.sleep(0)
    assert disk_bytes(tmp_path) == []
    assert await stored_ids(store) == []


class BlockedFile(io.BytesIO):
    """Its second read waits until `may_continue` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.may_continue = threading.Event(), threading.Event()
        self._reads = iter([b"first", b"second", b""])

    def read(self, size: int | None = -1, /) -> bytes:
        piece = next(self._reads)
        if piece == b"second":
            self.reading.set()
            self.may_continue.wait(10)
        return piece


async def test_nothing_is_left_on_disk_if_saving_is_cancelled(tmp_path: Path) -> None:
    store, content = make_store(tmp_path), BlockedFile()
    with store.upload() as upload:
        saving = asyncio.create_task(upload.save(content, DESCRIPTION))
        await asyncio.to_thread(content.reading.wait, 10)
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
    content.may_continue.set()
    async with asyncio.timeout(10):
        while disk_bytes(tmp_path):
            await asyncio.sleep(0.001)
    assert await stored_ids(store) == []


async def test_files_of_an_earlier_process_are_removed_and_other_files_are_kept(tmp_path: Path) -> None:
    await store_file(make_store(tmp_path), b"old")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    make_store(tmp_path)
    assert disk_bytes(tmp_path) == [4]


async def test_temporary_folder_is_removed_at_the_end() -> None:
    store = FileStore(FileSettings())
    path = await store.path((await store_file(store, b"x")).id)
    assert path.exists()
    await store.aclose()
    assert not path.parent.exists()
