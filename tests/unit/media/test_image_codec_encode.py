"""Encoding of images: formats, quality and determinism."""

from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from serve.media.image_codec import encode_image, enlarge_image
from serve.model_specs import ImageArray, ImageFormat


@pytest.fixture
def pixels() -> ImageArray:
    """A smooth gradient with noise, as [64, 96, 3]."""
    rows, columns = np.mgrid[:64, :96]
    smooth = np.dstack([rows * 3, columns * 2, (rows + columns) * 1.5])
    return (smooth + np.random.default_rng(0).normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("file_format", "name"), [("webp", "WEBP"), ("jpg", "JPEG"), ("png", "PNG")])
def test_file_has_requested_format_and_no_metadata(pixels: ImageArray, file_format: ImageFormat, name: str) -> None:
    image = Image.open(BytesIO(encode_image(pixels, file_format, 80)))
    assert (image.format, image.size, image.mode) == (name, (96, 64), "RGB")
    assert not image.getexif()


def test_png_is_lossless(pixels: ImageArray) -> None:
    content = encode_image(pixels, "png", 0)
    assert (np.asarray(Image.open(BytesIO(content))) == pixels).all()


@pytest.mark.parametrize("file_format", ["webp", "jpg"])
def test_higher_quality_gives_larger_files_and_smaller_errors(pixels: ImageArray, file_format: ImageFormat) -> None:
    """Includes quality 0, which code can mistake for a missing value."""
    sizes, errors = [], []
    for quality in (0, 10, 40, 75, 90, 100):
        content = encode_image(pixels, file_format, quality)
        sizes.append(len(content))
        errors.append(float(np.abs(np.asarray(Image.open(BytesIO(content)), np.float32) - pixels).mean()))
    assert all(low < high for low, high in pairwise(sizes))
    assert all(low > high for low, high in pairwise(errors))


@pytest.mark.parametrize("file_format", ["webp", "jpg", "png"])
def test_same_pixels_give_same_bytes(pixels: ImageArray, file_format: ImageFormat) -> None:
    assert encode_image(pixels, file_format, 80) == encode_image(pixels.copy(), file_format, 80)


@pytest.mark.parametrize("file_format", ["webp", "jpg", "png"])
def test_noise_at_best_quality_can_be_encoded(file_format: ImageFormat) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    assert encode_image(noise, file_format, 100)[0]


@pytest.mark.parametrize(("file_format", "name"), [("webp", "WEBP"), ("jpg", "JPEG"), ("png", "PNG")])
def test_enlarged_image_has_the_requested_size_format_and_colours(file_format: ImageFormat, name: str) -> None:
    halves = np.zeros((8, 16, 3), np.uint8)
    halves[:, 8:] = 200
    content = enlarge_image(encode_image(halves, "webp", 90), (160, 80), file_format, 90)
    with Image.open(BytesIO(content)) as image:
        assert (image.format, image.size) == (name, (160, 80))
        values = np.asarray(image.convert("L")).astype(int)
    assert values[:, :60].max() < 20
    assert values[:, 100:].min() > 180
