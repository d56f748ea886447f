"""Loading input images from `data:` URIs and URLs, with the real decoders."""

import asyncio
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from serve.errors import FetchFailed, InvalidInput
from serve.generation_plan import make_plan
from serve.inputs import Inputs
from serve.predictions.input_images import InputImages, LoadedImages, UnfetchedImages
from serve.settings import Settings
from tests.fakes import FakeFetcher
from tests.images import data_uri, png

SETTINGS = Settings()
IMAGE_URL, MASK_URL = "https://images.example/image.png", "https://masks.example/mask.png"


def make_inputs(image: str | None, mask: str | None = None) -> Inputs:
    return Inputs(prompt="a cat", image=image, mask=mask)


async def load(inputs: Inputs, fetcher: FakeFetcher | None = None) -> LoadedImages | UnfetchedImages:
    input_images = InputImages(SETTINGS, fetcher or FakeFetcher({}))
    return await input_images.load(inputs, make_plan(inputs, SETTINGS, random_seed=1))


async def load_and_fetch(inputs: Inputs, fetcher: FakeFetcher) -> LoadedImages:
    input_images = InputImages(SETTINGS, fetcher)
    return await input_images.fetch(await load(inputs, fetcher))


async def test_inputs_without_image_are_loaded_at_once() -> None:
    loaded = await load(make_inputs(None))
    assert isinstance(loaded, LoadedImages)
    assert (loaded.plan.size, loaded.image, loaded.mask) == ((1024, 1024), None, None)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("source", ["data", "url", "image by url", "mask by url"])
async def test_images_from_urls_and_data_uris_are_equal(source: str, masked: bool) -> None:
    files = {IMAGE_URL: png(200, 100), MASK_URL: png(50, 25)}
    image = IMAGE_URL if source in ("url", "image by url") else data_uri(files[IMAGE_URL])
    mask = MASK_URL if source in ("url", "mask by url") else data_uri(files[MASK_URL])
    loaded = await load_and_fetch(make_inputs(image, mask if masked else None), FakeFetcher(files))
    expected = await load_and_fetch(make_inputs(IMAGE_URL, MASK_URL if masked else None), FakeFetcher(files))
    assert loaded.plan.size == (208, 96)
    assert loaded.image is not None
    assert loaded.image.shape == (96, 208, 3)
    assert np.array_equal(loaded.image, expected.image)  # type: ignore[arg-type]
    if masked:
        assert loaded.mask is not None
        assert loaded.mask.shape == (96, 208)
        assert np.array_equal(loaded.mask, expected.mask)  # type: ignore[arg-type]


async def test_load_does_not_fetch_urls() -> None:
    fetcher = FakeFetcher({IMAGE_URL: png(200, 100)})
    pending = await load(make_inputs(IMAGE_URL), fetcher)
    assert isinstance(pending, UnfetchedImages)
    assert pending.plan.size is None
    assert fetcher.fetched == []


async def test_image_and_mask_are_fetched_concurrently() -> None:
    fetcher = FakeFetcher({IMAGE_URL: png(200, 100), MASK_URL: png(200, 100)}, concurrent=2)
    await asyncio.wait_for(load_and_fetch(make_inputs(IMAGE_URL, MASK_URL), fetcher), 5)


@pytest.mark.parametrize(
    ("image", "mask", "fields"),
    [
        ("data:,not an image", None, ["image"]),
        ("data:image/png;base64", None, ["image"]),
        (data_uri(png(100, 100)[:200]), None, ["image"]),
        (data_uri(png(20, 20)), None, ["image"]),
        (data_uri(png(900, 100)), None, ["image"]),
        (data_uri(png(100, 100)), "data:,not an image", ["mask"]),
        ("data:,not an image", "data:,not an image", ["image", "mask"]),
        (data_uri(png(20, 20)), "data:,not an image", ["image", "mask"]),
        (IMAGE_URL, "data:,not an image", ["mask"]),
        (data_uri(png(20, 20)), MASK_URL, ["image"]),
    ],
)
async def test_load_reports_all_errors_of_data_uris(image: str, mask: str | None, fields: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        await load(make_inputs(image, mask))
    assert [error.field for error in caught.value.field_errors] == fields


@pytest.mark.parametrize("content", [b"not an image", png(100, 100)[:200], png(20, 20), png(900, 100)])
async def test_invalid_fetched_image_has_the_same_error_as_a_data_uri(content: bytes) -> None:
    with pytest.raises(InvalidInput) as from_data_uri:
        await load(make_inputs(data_uri(content)))
    with pytest.raises(InvalidInput) as from_url:
        await load_and_fetch(make_inputs(IMAGE_URL), FakeFetcher({IMAGE_URL: content}))
    assert str(from_url.value) == str(from_data_uri.value)


@pytest.mark.parametrize(("field", "url"), [("image", IMAGE_URL), ("mask", MASK_URL)])
async def test_failed_fetch_names_the_field_and_the_url(field: str, url: str) -> None:
    files = {IMAGE_URL: png(200, 100), MASK_URL: png(200, 100)}
    del files[url]
    with pytest.raises(FetchFailed, match=url) as caught:
        await load_and_fetch(make_inputs(IMAGE_URL, MASK_URL), FakeFetcher(files))
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize("empty", ["data:,", "data:image/png;base64,", "data:image/png;base64,=="])
@pytest.mark.parametrize("other", ["data", "url"])
async def test_empty_data_uri_is_an_error_of_its_field(empty: str, field: str, other: str) -> None:
    given = data_uri(png(200, 100)) if other == "data" else IMAGE_URL
    inputs = make_inputs(empty, given) if field == "image" else make_inputs(given, empty)
    with pytest.raises(InvalidInput) as caught:
        await load(inputs)
    assert [error.field for error in caught.value.field_errors] == [field]
    if "==" not in empty:
        assert "0 bytes" in str(caught.value)


@pytest.mark.parametrize(("field", "url"), [("image", IMAGE_URL), ("mask", MASK_URL)])
@pytest.mark.parametrize("other", ["data", "url"])
async def test_url_without_content_is_an_error_of_its_field(field: str, url: str, other: str) -> None:
    files = {IMAGE_URL: png(200, 100), MASK_URL: png(200, 100), url: b""}
    image = IMAGE_URL if field == "image" or other == "url" else data_uri(files[IMAGE_URL])
    mask = MASK_URL if field == "mask" or other == "url" else data_uri(files[MASK_URL])
    with pytest.raises(InvalidInput) as caught:
        await load_and_fetch(make_inputs(image, mask), FakeFetcher(files))
    assert [error.field for error in caught.value.field_errors] == [field]
    assert "0 bytes" in str(caught.value)


@pytest.mark.parametrize("image", [IMAGE_URL, data_uri(png(200, 100))])
async def test_mask_that_repaints_nothing_is_an_error_before_anything_is_fetched(image: str) -> None:
    with pytest.raises(InvalidInput, match="repaints nothing") as caught:
        await load(make_inputs(image, data_uri(mask_file(0, 0))))
    assert [error.field for error in caught.value.field_errors] == ["mask"]


async def test_mask_that_is_cropped_away_is_an_error() -> None:
    mask = Image.new("L", (100, 64))
    mask.paste(255, (0, 0, 2, 64))
    with pytest.raises(InvalidInput, match="repaints nothing") as caught:
        await load(make_inputs(data_uri(png(100, 64)), data_uri(encode(mask))))
    assert [error.field for error in caught.value.field_errors] == ["mask"]


@pytest.mark.parametrize("by_url", [True, False])
async def test_notes_say_how_the_mask_was_read(by_url: bool) -> None:
    files = {IMAGE_URL: png(200, 100), MASK_URL: mask_file(1, 0)}
    mask = MASK_URL if by_url else data_uri(files[MASK_URL])
    loaded = await load_and_fetch(make_inputs(data_uri(files[IMAGE_URL]), mask), FakeFetcher(files))
    assert [note for note in loaded.notes if note.startswith("mask") and "0 and 1" in note]
    assert loaded.mask is not None
    assert loaded.mask.any()


def mask_file(inside: int, outside: int) -> bytes:
    mask = Image.new("L", (200, 100), outside)
    mask.paste(inside, (20, 20, 100, 80))
    return encode(mask)


def encode(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
