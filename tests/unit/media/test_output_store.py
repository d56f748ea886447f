"""Storage of outputs: names, URIs, limits on age and size, restarts and failing disks."""

import asyncio
import base64
import os
from pathlib import Path

import pytest

from serve.errors import NotFound, StorageFailed
from serve.media.output_store import OutputStore
from serve.settings import OutputSettings
from tests.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_700_000_000.0)


def make_store(folder: Path, clock: FakeClock, **settings: object) -> OutputStore:
    return OutputStore(OutputSettings.model_validate({"folder": folder, **settings}), clock)


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


async def readable(store: OutputStore, *prediction_ids: str) -> list[str]:
    """Returns the predictions whose first output can be read."""
    found = []
    for prediction_id in prediction_ids:
        try:
            await store.read(prediction_id, "out-0.webp")
        except NotFound:
            continue
        found.append(prediction_id)
    return found


@pytest.mark.parametrize(
    ("file_format", "media_type"), [("webp", "image/webp"), ("jpg", "image/jpeg"), ("png", "image/png")]
)
async def test_saved_output_is_read_with_its_media_type(
    tmp_path: Path, clock: FakeClock, file_format: str, media_type: str
) -> None:
    store = make_store(tmp_path, clock)
    name = await store.save("abc", 2, b"image", file_format)  # type: ignore[arg-type]
    assert name == f"out-2.{file_format}"
    assert await store.read("abc", name) == (b"image", media_type)


@pytest.mark.parametrize(
    ("delivery", "public_url", "uri"),
    [
        ("auto", "http://localhost:8000", "data:image/webp;base64," + base64.b64encode(b"image").decode()),
        ("auto", "https://example.com", "https://example.com/outputs/abc/out-0.webp"),
        ("auto", "https://example.com/flux/", "https://example.com/flux/outputs/abc/out-0.webp"),
        ("url", "http://localhost:8000", "http://localhost:8000/outputs/abc/out-0.webp"),
        ("data", "https://example.com", "data:image/webp;base64," + base64.b64encode(b"image").decode()),
    ],
)
async def test_uri_depends_on_delivery_and_public_url(
    tmp_path: Path, clock: FakeClock, delivery: str, public_url: str, uri: str
) -> None:
    store = make_store(tmp_path, clock, delivery=delivery, public_url=public_url)
    await store.save("abc", 0, b"image", "webp")
    assert await store.uri("abc", "out-0.webp") == uri


@pytest.mark.parametrize("delivery", ["data", "url"])
async def test_missing_output_is_not_found(tmp_path: Path, clock: FakeClock, delivery: str) -> None:
    store = make_store(tmp_path, clock, delivery=delivery)
    await store.save("abc", 0, b"image", "webp")
    for prediction_id, name in (("abc", "out-1.webp"), ("abcd", "out-0.webp"), ("abc", "out-0.png")):
        with pytest.raises(NotFound):
            await store.uri(prediction_id, name)
        with pytest.raises(NotFound):
            await store.read(prediction_id, name)


@pytest.mark.parametrize(
    ("prediction_id", "name"),
    [
        ("..", "out-0.webp"),
        (".", "out-0.webp"),
        ("", "out-0.webp"),
        ("../outputs/abc", "out-0.webp"),
        ("abc/../abc", "out-0.webp"),
        ("abc\x00", "out-0.webp"),
        ("abc\n", "out-0.webp"),
        ("%2e%2e", "out-0.webp"),
        ("a" * 101, "out-0.webp"),
        ("abc", "../secret.webp"),
        ("abc", ".out-0.webp.part"),
        ("abc", "out-0.webp/"),
        ("abc", "out-0.webp\n"),
        ("abc", "out-00.webp"),
        ("abc", "out-0.txt"),
        ("abc", "out-0.webp.png"),
        ("abc", "/etc/passwd"),
        ("abc", ""),
        ("abc", "out-\u0660.webp"),
    ],
)
async def test_other_files_are_never_read(tmp_path: Path, clock: FakeClock, prediction_id: str, name: str) -> None:
    folder = tmp_path / "outputs"
    store = make_store(folder, clock)
    await store.save("abc", 0, b"image", "webp")
    for path in (
        folder / "out-0.webp",
        tmp_path / "out-0.webp",
        tmp_path / "secret.webp",
        folder / "abc" / "out-0.txt",
    ):
        path.write_bytes(b"secret")
    for path in folder.rglob("out-*"):
        os.utime(path, (clock.elapsed_s, clock.elapsed_s))
    with pytest.raises(NotFound):
        await store.read(prediction_id, name)
    with pytest.raises(NotFound):
        await store.uri(prediction_id, name)


@pytest.mark.parametrize(
    ("prediction_id", "index"), [("../abc", 0), ("a/b", 0), ("", 0), (".hidden", 0), ("abc", -1), ("abc", 1000)]
)
async def test_invalid_prediction_id_or_index_is_rejected_before_writing(
    tmp_path: Path, clock: FakeClock, prediction_id: str, index: int
) -> None:
    store = make_store(tmp_path / "outputs", clock)
    with pytest.raises(ValueError, match="invalid"):
        await store.save(prediction_id, index, b"image", "webp")
    assert listing(tmp_path) == {"outputs"}


async def test_expired_output_is_not_found_and_is_swept(tmp_path: Path, clock: FakeClock) -> None:
    store = make_store(tmp_path, clock, max_age_s=60)
    await store.save("old", 0, b"image", "webp")
    clock.elapsed_s += 40
    await store.save("new", 0, b"image", "webp")
    clock.elapsed_s += 30
    assert await readable(store, "old", "new") == ["new"]
    with pytest.raises(NotFound, match="60 s"):
        await store.uri("old", "out-0.webp")
    await store.sweep()
    assert listing(tmp_path) == {"new", "new/out-0.webp"}


async def test_saving_sweeps_expired_outputs(tmp_path: Path, clock: FakeClock) -> None:
    store = make_store(tmp_path, clock, max_age_s=60)
    await store.save("old", 0, b"image", "webp")
    clock.elapsed_s += 70
    await store.save("new", 0, b"image", "webp")
    assert listing(tmp_path) == {"new", "new/out-0.webp"}


async def test_oldest_prediction_is_removed_when_max_bytes_is_exceeded(tmp_path: Path, clock: FakeClock) -> None:
    store = make_store(tmp_path, clock, max_bytes=350)
    for prediction_id in ("a", "b", "c"):
        await store.save(prediction_id, 0, bytes(100), "webp")
        clock.elapsed_s += 1
    await store.save("a", 1, bytes(50), "webp")
    assert await readable(store, "a", "b", "c") == ["a", "b", "c"], "exactly max_bytes"
    await store.save("d", 0, bytes(100), "webp")
    assert await readable(store, "a", "b", "c", "d") == ["a", "c", "d"], "the last output of a is newer than b"


async def test_overwritten_output_counts_once_towards_max_bytes(tmp_path: Path, clock: FakeClock) -> None:
    store = make_store(tmp_path, clock, max_bytes=250)
    await store.save("a", 0, bytes(100), "webp")
    for _ in range(5):
        await store.save("b", 0, bytes(150), "webp")
    assert await readable(store, "a", "b") == ["a", "b"]


async def test_prediction_being_saved_is_kept_even_if_larger_than_max_bytes(tmp_path: Path, clock: FakeClock) -> None:
    store = make_store(tmp_path, clock, max_bytes=10)
    await store.save("a", 0, bytes(100), "webp")
    await store.save("a", 1, bytes(100), "webp")
    assert await readable(store, "a") == ["a"]


async def test_outputs_keep_their_age_and_order_after_restart(tmp_path: Path, clock: FakeClock) -> None:
    first = make_store(tmp_path, clock)
    for prediction_id in ("z", "a", "m"):
        await first.save(prediction_id, 0, bytes(100), "webp")
        clock.elapsed_s += 10
    restarted = make_store(tmp_path, clock, max_age_s=100, max_bytes=250)
    assert await readable(restarted, "z", "a", "m") == ["z", "a", "m"]
    await restarted.sweep()
    assert await readable(restarted, "z", "a", "m") == ["a", "m"]
    clock.elapsed_s += 85
    assert await readable(restarted, "a", "m") == ["m"]


async def test_other_files_and_folders_are_never_removed(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "holiday").mkdir()
    for path in (tmp_path / "notes.txt", tmp_path / "holiday" / "beach.png", tmp_path / "holiday" / "out-0.webp"):
        path.write_bytes(bytes(100))
        os.utime(path, (0, 0))
    (tmp_path / "empty").mkdir()
    store = make_store(tmp_path, clock, max_bytes=150, max_age_s=1)
    await store.save("mine", 0, b"image", "webp")
    await store.sweep()
    others = {"holiday", "holiday/beach.png", "holiday/out-0.webp", "empty", "notes.txt"}
    assert listing(tmp_path) == others | {"mine", "mine/out-0.webp"}


async def test_partial_file_of_a_crash_is_never_read_and_is_swept(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "crashed").mkdir()
    partial = tmp_path / "crashed" / ".out-0.webp.part"
    partial.write_bytes(b"ima")
    os.utime(partial, (clock.elapsed_s, clock.elapsed_s))
    store = make_store(tmp_path, clock, max_age_s=60)
    assert await readable(store, "crashed") == []
    clock.elapsed_s += 61
    await store.sweep()
    assert listing(tmp_path) == set()


async def test_full_disk_raises_storage_failed_without_a_path_and_leaves_no_file(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_to_full_disk(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device", str(path))

    store = make_store(tmp_path, clock)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", write_to_full_disk)
        with pytest.raises(StorageFailed) as caught:
            await store.save("abc", 0, b"image", "webp")
    assert str(tmp_path) not in str(caught.value)
    assert listing(tmp_path) == set()
    assert await store.save("abc", 0, b"image", "webp") == "out-0.webp"


async def test_concurrent_reads_never_see_a_partial_file(tmp_path: Path, clock: FakeClock) -> None:
    store = make_store(tmp_path, clock)
    first, second = b"1" * 3_000_000, b"2" * 3_000_000
    await store.save("abc", 0, first, "png")
    writing = asyncio.gather(*(store.save("abc", 0, content, "png") for content in (second, first) * 5))
    while not writing.done():
        assert (await store.read("abc", "out-0.png"))[0] in (first, second)
    await writing


async def test_concurrent_saves_respect_max_bytes(tmp_path: Path, clock: FakeClock) -> None:
    store = make_store(tmp_path, clock, max_bytes=1000)
    await asyncio.gather(*(store.save(f"p{index}", 0, bytes(100), "webp") for index in range(30)))
    assert len(await readable(store, *(f"p{index}" for index in range(30)))) == 10


async def test_temporary_folder_is_removed_when_store_is_closed(clock: FakeClock) -> None:
    store = OutputStore(OutputSettings(), clock)
    folder = store._folder
    await store.save("abc", 0, b"image", "webp")
    assert (folder / "abc" / "out-0.webp").read_bytes() == b"image"
    await store.aclose()
    assert not folder.exists()
