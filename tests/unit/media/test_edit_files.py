"""Files of OpenAI's image edits become input images and masks."""

import io

import numpy as np
import pytest
from PIL import Image

from serve.errors import InvalidImage
from serve.media.edit_files import convert_edit
from serve.media.masks import decode_mask
from tests.images import png

IMAGE = png(64, 48)


def mask_file(alpha: np.ndarray, file_format: str = "png") -> bytes:
    """A mask whose colour says nothing, with this alpha channel."""
    height, width = alpha.shape
    colours = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.dstack([colours, alpha])).save(
        file, file_format, **{"lossless": True} if file_format == "webp" else {}
    )
    return file.getvalue()


def alpha_of(width: int, height: int, level: int = 0) -> np.ndarray:
    """Opaque, apart from the left half."""
    alpha = np.full((height, width), 255, np.uint8)
    alpha[:, : width // 2] = level
    return alpha


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_image_without_a_size_is_returned_unchanged() -> None:
    assert convert_edit(IMAGE, None, None, 1) == (IMAGE, None)


@pytest.mark.parametrize("file_format", ["png", "webp"])
def test_transparent_pixels_become_white(file_format: str) -> None:
    image, mask = convert_edit(IMAGE, mask_file(alpha_of(64, 48), file_format), None, 1)
    assert image == IMAGE
    assert mask is not None
    assert np.array_equal(pixels_of(mask), 255 - alpha_of(64, 48))
    assert np.array_equal(np.asarray(decode_mask(mask, "mask", 1).image), 255 - alpha_of(64, 48))


@pytest.mark.parametrize(("level", "is_repainted"), [(0, True), (127, True), (128, False), (254, False)])
def test_half_transparent_pixels_count_as_the_nearer_one(level: int, is_repainted: bool) -> None:
    alpha = alpha_of(64, 48, level)
    alpha[0, 0] = 0
    mask = convert_edit(IMAGE, mask_file(alpha), None, 1)[1]
    assert mask is not None
    assert pixels_of(mask)[1, 1] == (255 if is_repainted else 0)


def test_palette_with_a_transparent_colour_is_a_mask() -> None:
    palette = Image.new("P", (64, 48), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(0, (0, 0, 32, 48))
    file = io.BytesIO()
    palette.save(file, "png", transparency=0)
    mask = convert_edit(IMAGE, file.getvalue(), None, 1)[1]
    assert mask is not None
    assert np.array_equal(pixels_of(mask), 255 - alpha_of(64, 48))


@pytest.mark.parametrize("content", [png(64, 48), mask_file(alpha_of(64, 48, 255)), b"", b"x"])
def test_mask_without_transparent_pixels_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidImage) as raised:
        convert_edit(IMAGE, content, None, 1)
    assert raised.value.field == "mask"


def test_size_scales_both_files() -> None:
    image, mask = convert_edit(IMAGE, mask_file(alpha_of(64, 48)), (128, 32), 1)
    assert mask is not None
    assert pixels_of(image).shape == (32, 128, 3)
    assert np.array_equal(pixels_of(mask), 255 - alpha_of(128, 32))


def test_size_of_an_image_that_cannot_be_decoded() -> None:
    with pytest.raises(InvalidImage) as raised:
        convert_edit(b"x", None, (128, 32), 1)
    assert raised.value.field == "image"


@pytest.mark.parametrize("size", [None, (32, 32)])
def test_mask_over_the_megapixel_limit_is_refused(size: tuple[int, int] | None) -> None:
    with pytest.raises(InvalidImage) as raised:
        convert_edit(png(16, 16), mask_file(alpha_of(64, 48)), size, 0.001)
    assert raised.value.field == "mask"
