"""Loading input images from `data:` URIs and URLs, with the real decoders."""

import asyncio

import numpy as np
import pytest

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


async def test_failed_fetch_names_the_url() -> None:
    with pytest.raises(FetchFailed, match=MASK_URL):
        await load_and_fetch(make_inputs(IMAGE_URL, MASK_URL), FakeFetcher({IMAGE_URL: png(200, 100)}))
