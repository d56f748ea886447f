"""Pictures and masks come to the size of the plan by scaling and cropping, in register with each other."""

import numpy as np
import pytest
from PIL import Image

from serve.media.decode import resize_image, resize_mask
from serve.plan import input_image_size


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def disc(width: int, height: int, radius: float) -> Image.Image:
    """A white disc in the middle of black, as L."""
    rows, columns = np.ogrid[:height, :width]
    inside = (columns - width / 2 + 0.5) ** 2 + (rows - height / 2 + 0.5) ** 2 <= radius**2
    return Image.fromarray((inside * 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(64, 64), (512, 320), (1440, 80)])
def test_a_picture_of_the_right_size_is_unchanged_to_the_bit(size: tuple[int, int]) -> None:
    picture = noise(*size)
    assert (resize_image(picture, size) == np.asarray(picture)).all()


@pytest.mark.parametrize("given", [(2000, 1000), (1000, 3000), (333, 777), (65, 500), (1441, 1439)])
def test_a_picture_takes_the_size_of_its_plan(given: tuple[int, int]) -> None:
    width, height = input_image_size(given)
    pixels = resize_image(Image.new("RGB", given), (width, height))
    assert pixels.shape == (height, width, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("given", [(1000, 600), (700, 1500), (333, 500), (100, 72)])
def test_a_circle_stays_a_circle(given: tuple[int, int]) -> None:
    """Stretching 100x72 to 96x80 would make the disc 16 % taller than wide."""
    pixels = resize_image(disc(*given, radius=min(given) / 3).convert("RGB"), input_image_size(given))[..., 0] > 127
    width, height = pixels.any(axis=0).sum(), pixels.any(axis=1).sum()
    assert abs(int(width) - int(height)) <= 2


def test_what_is_cropped_is_cropped_on_both_sides_alike() -> None:
    picture = Image.new("RGB", (104, 64), "black")
    picture.paste("white", (4, 0, 100, 64))
    assert (resize_image(picture, (96, 64)) == 255).all()


@pytest.mark.parametrize("given", [(1000, 600), (700, 1500), (333, 500), (104, 64)])
def test_a_mask_lies_where_it_was_painted_on_the_picture(given: tuple[int, int]) -> None:
    size = input_image_size(given)
    painted = disc(*given, radius=min(given) / 3)
    mask = resize_mask(painted, given, size)
    picture = resize_image(painted.convert("RGB"), size)[..., 0]
    assert mask.shape == (size[1], size[0])
    assert ((mask == 255) != (picture > 127)).mean() < 0.005


@pytest.mark.parametrize("factor", [0.5, 2, 3])
def test_a_mask_of_another_size_is_stretched_over_the_whole_picture(factor: float) -> None:
    given, size = (320, 200), input_image_size((320, 200))
    whole = resize_mask(disc(*given, radius=60), given, size)
    other = resize_mask(disc(round(320 * factor), round(200 * factor), radius=60 * factor), given, size)
    assert (whole != other).mean() < 0.01


def test_a_mask_of_another_shape_is_stretched_over_the_whole_picture() -> None:
    top_quarter = Image.new("L", (10, 100))
    top_quarter.paste(255, (0, 0, 10, 25))
    mask = resize_mask(top_quarter, (320, 208), (320, 208))
    assert (mask[:52] == 255).all()
    assert (mask[52:] == 0).all()


def test_a_mask_is_either_kept_or_repainted_from_the_middle_grey_on() -> None:
    levels = Image.fromarray(np.tile(np.array([0, 1, 127, 128, 254, 255], np.uint8).repeat(16), (64, 1)))
    mask = resize_mask(levels, (96, 64), (96, 64))
    assert [int(level) for level in mask[0, ::16]] == [0, 0, 0, 255, 255, 255]
