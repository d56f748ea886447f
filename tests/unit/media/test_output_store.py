"""Storage of outputs: names, URIs, age and removal."""

import base64
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.errors import NotFound
from serve.media.links import LinkSigner
from serve.media.object_store import ObjectStore
from serve.media.output_store import OutputStore
from serve.settings import OutputSettings
from tests.fakes import NOON, FakeClock

DATA_URI = "data:image/webp;base64," + base64.b64encode(b"image").decode()


async def load_key() -> bytes:
    return b"secret"


async def download(url: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(url)


def make_store(store: ObjectStore, clock: FakeClock | None = None, **settings: object) -> OutputStore:
    output_settings = OutputSettings.model_validate(settings)
    clock = clock or FakeClock()
    links = LinkSigner(load_key, output_settings.link_max_age_s, clock)
    return OutputStore(output_settings, store, links, clock.now)


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStore:
    return ObjectStore((tmp_path / "stored").as_uri())


@pytest.mark.parametrize(
    ("file_format", "media_type"), [("webp", "image/webp"), ("jpg", "image/jpeg"), ("png", "image/png")]
)
async def test_saved_output_is_read_with_its_media_type(
    object_store: ObjectStore, file_format: Any, media_type: str
) -> None:
    outputs = make_store(object_store)
    name = await outputs.save("abc", 1, 2, b"image", file_format)
    assert name.rpartition("/")[2] == f"out-2.{file_format}"
    assert await outputs.read("abc", name) == (b"image", media_type)


async def test_process_without_the_lease_does_not_replace_an_output(object_store: ObjectStore) -> None:
    outputs = make_store(object_store)
    name = await outputs.save("abc", 2, 0, b"image", "webp")
    await outputs.save("abc", 1, 0, b"late", "webp")
    assert await outputs.read("abc", name) == (b"image", "image/webp")


async def test_all_outputs_of_a_prediction_are_deleted(object_store: ObjectStore) -> None:
    outputs = make_store(object_store)
    names = [await outputs.save("abc", lease, 0, b"image", "webp") for lease in (1, 2)]
    other = await outputs.save("abcd", 1, 0, b"image", "webp")
    await outputs.delete("abc")
    for name in names:
        with pytest.raises(NotFound):
            await outputs.read("abc", name)
    assert await outputs.read("abcd", other)


@pytest.mark.parametrize(
    ("delivery", "public_url", "uri"),
    [
        ("auto", "http://localhost:8000", DATA_URI),
        ("auto", "https://example.com", "https://example.com"),
        ("auto", "https://example.com/flux/", "https://example.com/flux"),
        ("url", "http://localhost:8000", "http://localhost:8000"),
        ("data", "https://example.com", DATA_URI),
    ],
)
async def test_uri_depends_on_delivery_and_public_url(
    folder: ObjectStore, delivery: str, public_url: str, uri: str
) -> None:
    outputs = make_store(folder, delivery=delivery, public_url=public_url)
    name = await outputs.save("abc", 1, 0, b"image", "webp")
    assert (await outputs.uri("abc", name)).partition("/links/")[0] == uri


async def test_url_of_an_output_in_a_bucket_is_presigned(s3_store: ObjectStore) -> None:
    outputs = make_store(s3_store, delivery="url")
    url = await outputs.uri("abc", await outputs.save("abc", 1, 0, b"image", "webp"))
    assert (await download(url)).content == b"image"
    assert httpx.URL(url).path.endswith("/out-0.webp")


async def test_missing_output_is_not_found(object_store: ObjectStore) -> None:
    outputs = make_store(object_store, delivery="data")
    await outputs.save("abc", 1, 0, b"image", "webp")
    for prediction_id, name in (("abc", "1/out-1.webp"), ("abcd", "1/out-0.webp"), ("abc", "2/out-0.webp")):
        with pytest.raises(NotFound):
            await outputs.uri(prediction_id, name)
        with pytest.raises(NotFound):
            await outputs.read(prediction_id, name)


@pytest.mark.parametrize(
    ("prediction_id", "name"),
    [
        ("..", "1/out-0.webp"),
        (".", "1/out-0.webp"),
        ("", "1/out-0.webp"),
        ("../outputs/abc", "1/out-0.webp"),
        ("abc/../abc", "1/out-0.webp"),
        ("abc\x00", "1/out-0.webp"),
        ("abc\n", "1/out-0.webp"),
        ("%2e%2e", "1/out-0.webp"),
        ("a" * 101, "1/out-0.webp"),
        ("abc", "out-0.webp"),
        ("abc", "../secret.webp"),
        ("abc", "1/../out-0.webp"),
        ("abc", "1/2/out-0.webp"),
        ("abc", "1/out-0.webp#1"),
        ("abc", "1/out-0.webp/"),
        ("abc", "1/out-0.webp\n"),
        ("abc", "1/out-00.webp"),
        ("abc", "1/out-0.txt"),
        ("abc", "1/out-0.webp.png"),
        ("abc", "/etc/passwd"),
        ("abc", ""),
        ("abc", "1/out-\u0660.webp"),
        ("abc", "\u0661/out-0.webp"),
    ],
)
async def test_other_files_are_never_read(folder: ObjectStore, tmp_path: Path, prediction_id: str, name: str) -> None:
    outputs = make_store(folder, delivery="url")
    await outputs.save("abc", 1, 0, b"image", "webp")
    stored = tmp_path / "stored" / "outputs"
    for path in (
        tmp_path / "secret.webp",
        stored / "out-0.webp",
        stored / "secret.webp",
        stored / "abc" / "out-0.webp",
    ):
        path.write_bytes(b"secret")
    for method in (outputs.read, outputs.uri):
        with pytest.raises(NotFound):
            await method(prediction_id, name)


@pytest.mark.parametrize(
    ("prediction_id", "index"), [("../abc", 0), ("a/b", 0), ("", 0), (".hidden", 0), ("abc", -1), ("abc", 1000)]
)
async def test_invalid_prediction_id_or_index_is_rejected_before_writing(
    folder: ObjectStore, tmp_path: Path, prediction_id: str, index: int
) -> None:
    with pytest.raises(ValueError, match="invalid"):
        await make_store(folder).save(prediction_id, 1, index, b"image", "webp")
    assert list((tmp_path / "stored").iterdir()) == []


async def test_outputs_are_kept_for_a_time_after_the_end(folder: ObjectStore) -> None:
    outputs = make_store(folder, FakeClock(60), max_age_s=60)
    assert outputs.is_kept(None)
    assert outputs.is_kept(NOON + timedelta(seconds=1))
    assert not outputs.is_kept(NOON)
