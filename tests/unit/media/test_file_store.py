"""Storage of uploaded files: limits on age, number and size, uploads in progress, several processes, lost processes."""

import asyncio
import hashlib
import io
import threading
from pathlib import Path

import pytest

from serve.database.connection import Database
from serve.errors import NotFound, StorageFailed, StorageUnavailable, UploadsFull, UploadTimedOut
from serve.media import file_store
from serve.media.file_rows import FileDescription, StoredFile
from serve.media.file_store import FileStore, Upload
from serve.media.object_store import ObjectStore
from serve.settings import FileSettings
from tests.fakes import FakeClock

DESCRIPTION = FileDescription("../../etc/passwd", "image/png", {"album": "caf\u00e9 \0"})


@pytest.fixture(autouse=True)
def exact_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads record every byte."""
    monkeypatch.setattr(file_store, "RECORD_STEP_BYTES", 1)


class StoresUnderTest:
    """Stores of several processes, with one database and one folder. Their clock advances with every file."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.clock = FakeClock(1_700_000_000.0)
        self.folder = folder
        self._database = database

    def make(self, **settings: int) -> FileStore:
        limits = {"max_file_bytes": 10, "max_bytes": 100, **settings}
        store = ObjectStore(self.folder.as_uri())
        return FileStore(FileSettings.model_validate(limits), self._database, store, self.clock)

    async def store_file(self, store: FileStore, content: bytes, owner: str = "") -> StoredFile:
        self.clock.elapsed_s += 1
        async with store.upload() as upload:
            await upload.grow(len(content))
            return await upload.save(io.BytesIO(content), DESCRIPTION, owner)

    @property
    def disk_bytes(self) -> list[int]:
        return sorted(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def stores(database: Database, tmp_path: Path) -> StoresUnderTest:
    return StoresUnderTest(database, tmp_path / "stored")


async def stored_ids(store: FileStore) -> list[str]:
    return [file.id for file in await store.page(None, 1000)]


async def test_stored_file_has_all_fields_in_every_process(stores: StoresUnderTest) -> None:
    file = await stores.store_file(stores.make(max_age_s=60), b"content")
    assert (file.size_bytes, file.sha256) == (7, hashlib.sha256(b"content").hexdigest())
    assert (file.created_s, file.expires_s) == (1_700_000_001.0, 1_700_000_061.0)
    other = stores.make()
    assert await other.get(file.id) == file
    assert file.description == DESCRIPTION
    assert await other.read(file.id) == b"content"
    async with other.local_copy(file.id) as path:
        assert path.read_bytes() == b"content"


async def test_file_in_a_bucket_is_read(database: Database, s3_store: ObjectStore) -> None:
    store = FileStore(FileSettings(), database, s3_store)
    async with store.upload() as upload:
        file = await upload.save(io.BytesIO(b"content"), DESCRIPTION)
    async with store.local_copy(file.id) as path:
        assert path.read_bytes() == await store.read(file.id) == b"content"
    await store.delete(file.id)
    with pytest.raises(FileNotFoundError):
        await s3_store.head(file_store.content_key(file.id))


async def test_files_are_listed_newest_first(stores: StoresUnderTest) -> None:
    store = stores.make()
    ids = [(await stores.store_file(store, b"x")).id for _ in range(3)]
    assert await stored_ids(store) == ids[::-1]
    assert [file.id for file in await store.page(ids[2], 1)] == [ids[1]]
    with pytest.raises(NotFound):
        await store.page("unknown", 1)


async def test_owner_sees_own_files_only_in_every_process(stores: StoresUnderTest) -> None:
    store, other = stores.make(), stores.make()
    first = await stores.store_file(store, b"x", "one")
    second = await stores.store_file(store, b"x", "two")
    third = await stores.store_file(store, b"x", "one")
    assert (await other.get(first.id, "one")).owner == "one"
    assert await other.page(None, 10, "one") == [third, first]
    assert await other.page(third.id, 10, "one") == [first]
    assert await other.page(None, 1, "two") == [second]
    assert await stored_ids(other) == [third.id, second.id, first.id]
    for call in (other.get(second.id, "one"), other.delete(second.id, "one"), other.page(second.id, 10, "one")):
        with pytest.raises(NotFound):
            await call
    await other.delete(second.id, "two")


@pytest.mark.parametrize("file_id", ["unknown", "", "../x", "0" * 32, "\0", "\ud800"])
async def test_unknown_file_is_not_found(stores: StoresUnderTest, file_id: str) -> None:
    store = stores.make()
    for method in (store.get, store.read, store.delete):
        with pytest.raises(NotFound):
            await method(file_id)


async def test_deleted_file_is_removed_for_all_processes(stores: StoresUnderTest) -> None:
    store = stores.make()
    file = await stores.store_file(store, b"x")
    await store.delete(file.id)
    with pytest.raises(NotFound):
        await stores.make().get(file.id)
    assert stores.disk_bytes == []


async def test_file_without_its_content_is_not_found(stores: StoresUnderTest) -> None:
    store = stores.make()
    file = await stores.store_file(store, b"x")
    (stores.folder / file_store.content_key(file.id)).unlink()
    with pytest.raises(NotFound):
        await store.read(file.id)
    with pytest.raises(NotFound):
        async with store.local_copy(file.id) as path:
            path.read_bytes()


async def test_expired_file_is_not_found_and_removed_by_a_sweep(stores: StoresUnderTest) -> None:
    store = stores.make(max_age_s=60)
    old = await stores.store_file(store, b"old")
    stores.clock.elapsed_s += 30
    new = await stores.store_file(store, b"new!")
    stores.clock.elapsed_s += 29
    with pytest.raises(NotFound):
        await store.read(old.id)
    assert await stored_ids(store) == [new.id]
    await stores.make().sweep()
    assert stores.disk_bytes == [4]


@pytest.mark.parametrize("limits", [{"max_files": 2}, {"max_bytes": 20}])
async def test_oldest_files_are_removed_when_a_limit_is_reached(
    stores: StoresUnderTest, limits: dict[str, int]
) -> None:
    ids = [(await stores.store_file(stores.make(**limits), b"x" * 10)).id for _ in range(4)]
    assert await stored_ids(stores.make()) == [ids[3], ids[2]]
    assert stores.disk_bytes == [10, 10]


async def test_bytes_of_uploads_in_progress_count_over_all_processes(stores: StoresUnderTest) -> None:
    one, two = stores.make(max_bytes=20), stores.make(max_bytes=20)
    old = await stores.store_file(one, b"x" * 10)
    async with one.upload() as first, two.upload() as second:
        await first.grow(10)
        assert await stored_ids(two) == [old.id]
        await second.grow(5)
        assert await stored_ids(one) == []
        with pytest.raises(UploadsFull):
            await second.grow(6)
    async with one.upload() as third:
        await third.grow(20)


async def test_uploads_in_progress_are_limited_in_number(stores: StoresUnderTest) -> None:
    one, two = stores.make(max_files=1), stores.make(max_files=1)
    async with one.upload() as first, two.upload() as second:
        await first.grow(1)
        with pytest.raises(UploadsFull):
            await second.grow(1)


async def test_size_of_the_content_counts_before_it_is_stored(
    stores: StoresUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_store, "RECORD_STEP_BYTES", 1000)
    store = stores.make(max_bytes=20)
    async with store.upload() as first, store.upload() as second:
        for upload in (first, second):
            await upload.grow(1)
            await upload.grow(14)
        await first.save(io.BytesIO(b"x" * 15), DESCRIPTION)
        await second.save(io.BytesIO(b"x" * 15), DESCRIPTION)
    assert await stored_ids(store) == [second.id]
    assert stores.disk_bytes == [15]


class FailingFile(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError


async def test_nothing_is_left_if_the_content_cannot_be_copied(stores: StoresUnderTest) -> None:
    store = stores.make(max_files=1)
    async with store.upload() as upload:
        with pytest.raises(StorageFailed):
            await upload.save(FailingFile(), DESCRIPTION)
    assert stores.disk_bytes == []
    assert await stored_ids(store) == []
    await stores.store_file(store, b"x")


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


async def save_and_cancel(store: FileStore, content: BlockedFile) -> Upload:
    """The upload, whose block has been left while its content is still being copied."""
    async with store.upload() as upload:
        await upload.grow(1)
        saving = asyncio.create_task(upload.save(content, DESCRIPTION))
        await asyncio.to_thread(content.reading.wait, 10)
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
    return upload


async def test_nothing_is_left_if_saving_is_cancelled(stores: StoresUnderTest) -> None:
    store, content = stores.make(), BlockedFile()
    await save_and_cancel(store, content)
    content.may_continue.set()
    await store.aclose()
    assert stores.disk_bytes == []
    assert await stored_ids(store) == []


async def test_upload_of_a_lost_process_is_swept(stores: StoresUnderTest) -> None:
    lost, store = stores.make(max_files=1), stores.make(max_files=1)
    async with lost.upload() as upload:
        await upload.grow(5)
        (stores.folder / "files" / upload.id).mkdir(parents=True)
        (stores.folder / "files" / upload.id / "content#1").write_bytes(b"part")
        with pytest.raises(UploadsFull):
            await stores.store_file(store, b"x")
        stores.clock.elapsed_s += FileSettings().upload_timeout_s + file_store.SAVE_TIME_S
        await store.sweep()
        assert stores.disk_bytes == []
        await stores.store_file(store, b"x")
        # The process was only slow.
        with pytest.raises(UploadTimedOut):
            await upload.save(io.BytesIO(b"late"), DESCRIPTION)
    assert stores.disk_bytes == [1]


async def test_content_that_cannot_be_deleted_is_deleted_later(
    stores: StoresUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(store: ObjectStore, prefix: str) -> None:
        raise StorageUnavailable

    store = stores.make(max_age_s=60)
    file = await stores.store_file(store, b"x")
    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "delete_folder", fail)
        await store.delete(file.id)
        with pytest.raises(NotFound):
            await store.get(file.id)
    assert stores.disk_bytes == [1]
    await store.sweep()
    assert stores.disk_bytes == []
