"""Input pictures from data: URIs and URLs, read by the real decoders."""

import asyncio

import numpy as np
import pytest

from serve.errors import FetchFailed, InvalidInput
from serve.inputs import Inputs
from serve.plan import make_plan
from serve.predictions.input_images import InputImages, LoadedImages, PendingImages
from serve.settings import Settings
from tests.fakes import FakeFetcher
from tests.images import data_uri, png

SETTINGS = Settings()
HERE, THERE = "https://here.example/image.png", "https://there.example/mask.png"


def asked(image: str | None, mask: str | None = None) -> Inputs:
    return Inputs(prompt="a cat", image=image, mask=mask)


def pictures(fetcher: FakeFetcher | None = None) -> InputImages:
    return InputImages(SETTINGS, fetcher or FakeFetcher({}))


async def opened(inputs: Inputs, fetcher: FakeFetcher | None = None) -> LoadedImages | PendingImages:
    return await pictures(fetcher).load(inputs, make_plan(inputs, SETTINGS, random_seed=1))


async def prepared(inputs: Inputs, fetcher: FakeFetcher) -> LoadedImages:
    return await pictures(fetcher).fetch_pending(await opened(inputs, fetcher))


async def test_without_a_picture_there_is_nothing_to_prepare() -> None:
    ready = await opened(asked(None))
    assert isinstance(ready, LoadedImages)
    assert (ready.plan.size, ready.image, ready.mask) == ((1024, 1024), None, None)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("source", ["data", "url", "image by url", "mask by url"])
async def test_pictures_are_the_same_wherever_they_come_from(source: str, masked: bool) -> None:
    files = {HERE: png(200, 100), THERE: png(50, 25)}
    image = HERE if source in ("url", "image by url") else data_uri(files[HERE])
    mask = THERE if source in ("url", "mask by url") else data_uri(files[THERE])
    ready = await prepared(asked(image, mask if masked else None), FakeFetcher(files))
    expected = await prepared(asked(HERE, THERE if masked else None), FakeFetcher(files))
    assert ready.plan.size == (208, 96)
    assert ready.image is not None
    assert ready.image.shape == (96, 208, 3)
    assert np.array_equal(ready.image, expected.image)  # type: ignore[arg-type]
    if masked:
        assert ready.mask is not None
        assert ready.mask.shape == (96, 208)
        assert np.array_equal(ready.mask, expected.mask)  # type: ignore[arg-type]


async def test_nothing_is_fetched_before_acceptance() -> None:
    fetcher = FakeFetcher({HERE: png(200, 100)})
    ready = await opened(asked(HERE), fetcher)
    assert isinstance(ready, PendingImages)
    assert ready.plan.size is None
    assert fetcher.fetched == []


async def test_image_and_mask_are_fetched_at_the_same_time() -> None:
    fetcher = FakeFetcher({HERE: png(200, 100), THERE: png(200, 100)}, concurrent=2)
    await asyncio.wait_for(prepared(asked(HERE, THERE), fetcher), 5)


@pytest.mark.parametrize(
    ("image", "mask", "fields"),
    [
        ("data:,not a picture", None, ["image"]),
        ("data:image/png;base64", None, ["image"]),
        (data_uri(png(100, 100)[:200]), None, ["image"]),
        (data_uri(png(20, 20)), None, ["image"]),
        (data_uri(png(900, 100)), None, ["image"]),
        (data_uri(png(100, 100)), "data:,nor this", ["mask"]),
        ("data:,not a picture", "data:,nor this", ["image", "mask"]),
        (data_uri(png(20, 20)), "data:,nor this", ["image", "mask"]),
        (HERE, "data:,not a picture", ["mask"]),
        (data_uri(png(20, 20)), THERE, ["image"]),
    ],
)
async def test_faults_of_data_uris_are_told_at_once_and_before_acceptance(
    image: str, mask: str | None, fields: list[str]
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await opened(asked(image, mask))
    assert [fault.field for fault in refused.value.field_errors] == fields


@pytest.mark.parametrize("content", [b"not a picture", png(100, 100)[:200], png(20, 20), png(900, 100)])
async def test_a_fetched_picture_is_refused_with_the_sentence_of_a_data_uri(content: bytes) -> None:
    with pytest.raises(InvalidInput) as at_once:
        await opened(asked(data_uri(content)))
    with pytest.raises(InvalidInput) as later:
        await prepared(asked(HERE), FakeFetcher({HERE: content}))
    assert str(later.value) == str(at_once.value)


async def test_what_cannot_be_fetched_is_named() -> None:
    with pytest.raises(FetchFailed, match=THERE):
        await prepared(asked(HERE, THERE), FakeFetcher({HERE: png(200, 100)}))
