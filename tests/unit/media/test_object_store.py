"""Stores of files, in a folder and in a bucket of S3."""

import asyncio
import errno
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from serve.errors import StorageFailed, StorageUnavailable
from serve.media.object_store import ObjectStore

KEY = "outputs/p1/1/out-0.webp"


async def download(url: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(url)


async def put(store: ObjectStore, key: str, content: bytes = b"image") -> None:
    await store.put(key, content, "image/webp", "out-0.webp")


async def iterate(chunks: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    for chunk in chunks:
        yield chunk


async def collect(store: ObjectStore, key: str, start: int, end: int) -> bytes:
    return b"".join([chunk async for chunk in await store.open(key, start, end)])


async def test_content_is_read_in_full_and_in_part(object_store: ObjectStore) -> None:
    content = bytes(range(256)) * 12_000
    await put(object_store, KEY, content)
    info = await object_store.head(KEY)
    assert info.size_bytes == len(content)
    assert info.etag.strip('"') != info.etag
    assert await object_store.read(KEY) == content
    assert await collect(object_store, KEY, 0, len(content)) == content
    assert await collect(object_store, KEY, 1_000_000, 1_000_003) == content[1_000_000:1_000_003]


async def test_empty_content_is_read(object_store: ObjectStore) -> None:
    await put(object_store, KEY, b"")
    assert await collect(object_store, KEY, 0, 0) == await object_store.read(KEY) == b""


async def test_missing_content_is_not_found(object_store: ObjectStore) -> None:
    for call in (object_store.read, object_store.head, lambda key: object_store.open(key, 0, 1)):
        with pytest.raises(FileNotFoundError):
            await call("outputs/p1/1/out-1.webp")


async def test_folders_are_listed_by_age(object_store: ObjectStore) -> None:
    start = datetime.now(UTC)
    assert await object_store.folders("inputs", start) == []
    for key in ("inputs/one/a", "inputs/one/b/c", "inputs/two/a", "outputs/three/a"):
        await put(object_store, key)
    # The clock of a bucket has seconds.
    assert await object_store.folders("inputs", start - timedelta(seconds=2)) == []
    assert sorted(await object_store.folders("inputs", start + timedelta(minutes=1))) == ["one", "two"]


async def test_deletion_of_a_folder_keeps_others(object_store: ObjectStore) -> None:
    for key in ("outputs/p1/1/a", "outputs/p1/2/a", "outputs/p10/1/a"):
        await put(object_store, key)
    await object_store.delete_folder("outputs/p1")
    await object_store.delete_folder("outputs/unknown")
    for key in ("outputs/p1/1/a", "outputs/p1/2/a"):
        with pytest.raises(FileNotFoundError):
            await object_store.head(key)
    assert await object_store.read("outputs/p10/1/a") == b"image"


async def test_chunks_are_one_content(object_store: ObjectStore) -> None:
    chunks = [b"x" * 6_000_000, b"y", b"z" * 6_000_000]
    await object_store.put_chunks("files/f1/content", iterate(chunks))
    assert await object_store.read("files/f1/content") == b"".join(chunks)
    async with object_store.local_copy("files/f1/content") as path:
        assert path.read_bytes() == b"".join(chunks)


async def test_content_that_fails_halfway_is_not_stored(object_store: ObjectStore) -> None:
    async def failing() -> AsyncGenerator[bytes, None]:
        yield b"x" * 6_000_000
        raise KeyError

    with pytest.raises(KeyError):
        await object_store.put_chunks("files/f1/content", failing())
    with pytest.raises(FileNotFoundError):
        await object_store.head("files/f1/content")


async def test_concurrent_reads_never_see_a_partial_content(object_store: ObjectStore) -> None:
    first, second = b"1" * 3_000_000, b"2" * 3_000_000
    await put(object_store, KEY, first)
    writing = asyncio.gather(*(put(object_store, KEY, content) for content in (second, first) * 3))
    while not writing.done():
        assert await object_store.read(KEY) in (first, second)
    await writing


async def test_bucket_has_media_type_and_name_behind_a_presigned_url(s3_store: ObjectStore) -> None:
    await put(s3_store, KEY)
    url = await s3_store.presigned_url(KEY, 60)
    assert url is not None
    assert urlsplit(url).path.endswith(KEY)
    response = await download(url)
    assert (response.status_code, response.content) == (200, b"image")
    assert response.headers["Content-Type"] == "image/webp"
    assert "out-0.webp" in response.headers["Content-Disposition"]


async def test_folder_has_no_presigned_urls(tmp_path: Path) -> None:
    assert await ObjectStore(tmp_path.as_uri()).presigned_url(KEY, 60) is None


async def test_content_of_a_crash_is_deleted_with_its_folder(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path.as_uri())
    await put(store, KEY)
    (tmp_path / f"{KEY}#1").write_bytes(b"ima")
    await store.delete_folder("outputs/p1")
    assert list((tmp_path / "outputs").iterdir()) == []


async def test_folder_name_with_special_characters_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20#c"
    await put(ObjectStore(folder.as_uri()), KEY)
    assert (folder / KEY).read_bytes() == b"image"


async def test_unreachable_bucket_is_unavailable_without_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.media.object_store.MAX_RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ALLOW_HTTP"):
        monkeypatch.setenv(name, "true")
    store = ObjectStore("s3://flux")
    for call in (store.read, store.head, store.delete_folder):
        with pytest.raises(StorageUnavailable) as caught:
            await call(KEY)
        assert "127" not in str(caught.value)
    with pytest.raises(StorageFailed):
        await put(store, KEY)


WRITE_TO_FULL_DISK = """
import asyncio, os, resource, sys
from serve.errors import StorageFailed
from serve.media.object_store import ObjectStore

store = ObjectStore(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

async def put():
    await store.put("outputs/p1/1/out-0.webp", bytes(1_000_000), "image/webp", "out-0.webp")

async def put_chunks():
    async def chunks():
        yield bytes(9_000_000)
    await store.put_chunks("files/f1/content", chunks())

for write in (put, put_chunks):
    try:
        asyncio.run(write())
    except StorageFailed as error:
        print(error, flush=True)
# A thread of obstore that still needs the GIL while the interpreter ends would abort the process.
os._exit(0)
"""


def test_full_disk_is_a_failure_without_a_path_and_leaves_no_file(tmp_path: Path) -> None:
    """A limit on the size of files makes writes fail in the same place as a full disk does."""
    command = [sys.executable, "-c", WRITE_TO_FULL_DISK, tmp_path.as_uri()]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.count("stored") == 2, process.stderr
    assert str(tmp_path) not in process.stdout
    assert str(errno.EFBIG) in process.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
