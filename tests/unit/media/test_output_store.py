"""Outputs are kept whole, named, given back by their names only, and gone when they are too old or too many."""

import asyncio
import base64
import os
from pathlib import Path

import pytest

from serve.errors import NotFound, StorageFailed
from serve.media.output_store import OutputStore
from serve.settings import OutputSettings


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def a_store(folder: Path, clock: Clock, **settings: object) -> OutputStore:
    return OutputStore(OutputSettings.model_validate({"folder": folder, **settings}), clock)


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


async def kept(store: OutputStore, *prediction_ids: str) -> list[str]:
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
async def test_an_output_is_given_back_with_its_media_type(
    tmp_path: Path, clock: Clock, file_format: str, media_type: str
) -> None:
    store = a_store(tmp_path, clock)
    name = await store.save("abc", 2, b"picture", file_format)  # type: ignore[arg-type]
    assert name == f"out-2.{file_format}"
    assert await store.read("abc", name) == (b"picture", media_type)


@pytest.mark.parametrize(
    ("delivery", "public_url", "uri"),
    [
        ("auto", "http://localhost:8000", "data:image/webp;base64," + base64.b64encode(b"picture").decode()),
        ("auto", "https://example.com", "https://example.com/outputs/abc/out-0.webp"),
        ("auto", "https://example.com/flux/", "https://example.com/flux/outputs/abc/out-0.webp"),
        ("url", "http://localhost:8000", "http://localhost:8000/outputs/abc/out-0.webp"),
        ("data", "https://example.com", "data:image/webp;base64," + base64.b64encode(b"picture").decode()),
    ],
)
async def test_the_uri_of_an_output_is_as_set(
    tmp_path: Path, clock: Clock, delivery: str, public_url: str, uri: str
) -> None:
    store = a_store(tmp_path, clock, delivery=delivery, public_url=public_url)
    await store.save("abc", 0, b"picture", "webp")
    assert await store.uri("abc", "out-0.webp") == uri


@pytest.mark.parametrize("delivery", ["data", "url"])
async def test_what_is_not_there_has_no_uri(tmp_path: Path, clock: Clock, delivery: str) -> None:
    store = a_store(tmp_path, clock, delivery=delivery)
    await store.save("abc", 0, b"picture", "webp")
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
async def test_only_names_that_the_store_gave_are_read(
    tmp_path: Path, clock: Clock, prediction_id: str, name: str
) -> None:
    folder = tmp_path / "outputs"
    store = a_store(folder, clock)
    await store.save("abc", 0, b"picture", "webp")
    for path in (
        folder / "out-0.webp",
        tmp_path / "out-0.webp",
        tmp_path / "secret.webp",
        folder / "abc" / "out-0.txt",
    ):
        path.write_bytes(b"secret")
    for path in folder.rglob("out-*"):
        os.utime(path, (clock.now_s, clock.now_s))
    with pytest.raises(NotFound):
        await store.read(prediction_id, name)
    with pytest.raises(NotFound):
        await store.uri(prediction_id, name)


@pytest.mark.parametrize(
    ("prediction_id", "index"), [("../abc", 0), ("a/b", 0), ("", 0), (".hidden", 0), ("abc", -1), ("abc", 1000)]
)
async def test_nothing_is_written_outside_of_the_folder(
    tmp_path: Path, clock: Clock, prediction_id: str, index: int
) -> None:
    store = a_store(tmp_path / "outputs", clock)
    with pytest.raises(ValueError, match="cannot be stored"):
        await store.save(prediction_id, index, b"picture", "webp")
    assert listing(tmp_path) == {"outputs"}


async def test_an_output_that_is_too_old_is_neither_given_out_nor_kept(tmp_path: Path, clock: Clock) -> None:
    store = a_store(tmp_path, clock, max_age_s=60)
    await store.save("old", 0, b"picture", "webp")
    clock.now_s += 40
    await store.save("young", 0, b"picture", "webp")
    clock.now_s += 30
    assert await kept(store, "old", "young") == ["young"]
    with pytest.raises(NotFound, match="60 s"):
        await store.uri("old", "out-0.webp")
    await store.sweep()
    assert listing(tmp_path) == {"young", "young/out-0.webp"}


async def test_saving_sweeps_too(tmp_path: Path, clock: Clock) -> None:
    store = a_store(tmp_path, clock, max_age_s=60)
    await store.save("old", 0, b"picture", "webp")
    clock.now_s += 70
    await store.save("new", 0, b"picture", "webp")
    assert listing(tmp_path) == {"new", "new/out-0.webp"}


async def test_the_oldest_prediction_makes_room_for_the_newest(tmp_path: Path, clock: Clock) -> None:
    store = a_store(tmp_path, clock, max_bytes=350)
    for prediction_id in ("a", "b", "c"):
        await store.save(prediction_id, 0, bytes(100), "webp")
        clock.now_s += 1
    await store.save("a", 1, bytes(50), "webp")
    assert await kept(store, "a", "b", "c") == ["a", "b", "c"], "exactly full"
    await store.save("d", 0, bytes(100), "webp")
    assert await kept(store, "a", "b", "c", "d") == ["a", "c", "d"], "a was saved to after b"


async def test_an_output_that_is_saved_again_counts_once(tmp_path: Path, clock: Clock) -> None:
    store = a_store(tmp_path, clock, max_bytes=250)
    await store.save("a", 0, bytes(100), "webp")
    for _ in range(5):
        await store.save("b", 0, bytes(150), "webp")
    assert await kept(store, "a", "b") == ["a", "b"]


async def test_what_is_being_saved_is_kept_even_when_it_is_too_much(tmp_path: Path, clock: Clock) -> None:
    store = a_store(tmp_path, clock, max_bytes=10)
    await store.save("a", 0, bytes(100), "webp")
    await store.save("a", 1, bytes(100), "webp")
    assert await kept(store, "a") == ["a"]


async def test_outputs_survive_a_restart_with_their_age_and_order(tmp_path: Path, clock: Clock) -> None:
    first = a_store(tmp_path, clock)
    for prediction_id in ("z", "a", "m"):
        await first.save(prediction_id, 0, bytes(100), "webp")
        clock.now_s += 10
    again = a_store(tmp_path, clock, max_age_s=100, max_bytes=250)
    assert await kept(again, "z", "a", "m") == ["z", "a", "m"]
    await again.sweep()
    assert await kept(again, "z", "a", "m") == ["a", "m"]
    clock.now_s += 85
    assert await kept(again, "a", "m") == ["m"]


async def test_what_is_not_ours_is_left_alone(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "holiday").mkdir()
    for path in (tmp_path / "notes.txt", tmp_path / "holiday" / "beach.png", tmp_path / "holiday" / "out-0.webp"):
        path.write_bytes(bytes(100))
        os.utime(path, (0, 0))
    (tmp_path / "empty").mkdir()
    store = a_store(tmp_path, clock, max_bytes=150, max_age_s=1)
    await store.save("mine", 0, b"picture", "webp")
    await store.sweep()
    left = {"holiday", "holiday/beach.png", "holiday/out-0.webp", "empty", "notes.txt"}
    assert listing(tmp_path) == left | {"mine", "mine/out-0.webp"}


async def test_what_a_crash_left_half_written_is_never_read_and_goes_in_time(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "crashed").mkdir()
    half = tmp_path / "crashed" / ".out-0.webp.part"
    half.write_bytes(b"hal")
    os.utime(half, (clock.now_s, clock.now_s))
    store = a_store(tmp_path, clock, max_age_s=60)
    assert await kept(store, "crashed") == []
    clock.now_s += 61
    await store.sweep()
    assert listing(tmp_path) == set()


async def test_a_disk_that_takes_nothing_fails_the_prediction_without_a_path_and_leaves_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device", str(path))

    store = a_store(tmp_path, clock)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageFailed) as caught:
            await store.save("abc", 0, b"picture", "webp")
    assert str(tmp_path) not in str(caught.value)
    assert listing(tmp_path) == set()
    assert await store.save("abc", 0, b"picture", "webp") == "out-0.webp"


async def test_a_reader_sees_the_whole_file_or_none(tmp_path: Path, clock: Clock) -> None:
    store = a_store(tmp_path, clock)
    one, other = b"1" * 3_000_000, b"2" * 3_000_000
    await store.save("abc", 0, one, "png")
    writing = asyncio.gather(*(store.save("abc", 0, content, "png") for content in (other, one) * 5))
    while not writing.done():
        assert (await store.read("abc", "out-0.png"))[0] in (one, other)
    await writing


async def test_saves_at_the_same_time_keep_the_account_right(tmp_path: Path, clock: Clock) -> None:
    store = a_store(tmp_path, clock, max_bytes=1000)
    await asyncio.gather(*(store.save(f"p{index}", 0, bytes(100), "webp") for index in range(30)))
    assert len(await kept(store, *(f"p{index}" for index in range(30)))) == 10


async def test_without_a_folder_outputs_lie_in_a_temporary_one_that_goes_with_the_store(clock: Clock) -> None:
    store = OutputStore(OutputSettings(), clock)
    folder = store._folder
    await store.save("abc", 0, b"picture", "webp")
    assert (folder / "abc" / "out-0.webp").read_bytes() == b"picture"
    await store.aclose()
    assert not folder.exists()
