"""`resize_image`: proportions and cropping."""

import numpy as np
import pytest
from PIL import Image

from serve.generation_plan import input_image_size
from serve.media.image_codec import resize_image


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def disc(width: int, height: int, radius: float) -> Image.Image:
    """Returns a centred white disc on black, in mode L."""
    rows, columns = np.ogrid[:height, :width]
    inside = (columns - width / 2 + 0.5) ** 2 + (rows - height / 2 + 0.5) ** 2 <= radius**2
    return Image.fromarray((inside * 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(64, 64), (512, 320), (1440, 80)])
def test_image_with_target_size_is_unchanged(size: tuple[int, int]) -> None:
    image = noise(*size)
    assert (resize_image(image, size) == np.asarray(image)).all()


@pytest.mark.parametrize("source_size", [(2000, 1000), (1000, 3000), (333, 777), (65, 500), (1441, 1439)])
def test_resized_image_has_size_of_plan(source_size: tuple[int, int]) -> None:
    width, height = input_image_size(source_size)
    pixels = resize_image(Image.new("RGB", source_size), (width, height))
    assert pixels.shape == (height, width, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("source_size", [(1000, 600), (700, 1500), (333, 500), (100, 72)])
def test_resizing_keeps_proportions(source_size: tuple[int, int]) -> None:
    """Stretching 100x72 to 96x80 would make the disc 16 % taller than wide."""
    source = disc(*source_size, radius=min(source_size) / 3).convert("RGB")
    white = resize_image(source, input_image_size(source_size))[..., 0] > 127
    width, height = white.any(axis=0).sum(), white.any(axis=1).sum()
    assert abs(int(width) - int(height)) <= 2


def test_image_is_cropped_equally_on_both_sides() -> None:
    image = Image.new("RGB", (104, 64), "black")
    image.paste("white", (4, 0, 100, 64))
    assert (resize_image(image, (96, 64)) == 255).all()
