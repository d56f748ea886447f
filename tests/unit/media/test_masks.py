"""Masks: what they repaint, which ones are refused, and how they are resized."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from serve.errors import InvalidImage
from serve.generation_plan import input_image_size
from serve.media.image_codec import resize_image
from serve.media.masks import Mask, decode_mask, resize_mask

SIZE = (40, 24)
BOX = (8, 4, 24, 16)
"""A fifth of the mask."""


def box(inside: object, outside: object, mode: str) -> Image.Image:
    image = Image.new(mode, SIZE, outside)  # type: ignore[arg-type]
    image.paste(inside, BOX)  # type: ignore[arg-type]
    return image


def decode(image: Image.Image, file_format: str = "PNG", **options: object) -> Mask:
    file = BytesIO()
    image.save(file, file_format, **options)
    return decode_mask(file.getvalue(), "mask", 1)


def repainted(mask: Mask) -> np.ndarray:
    return np.asarray(mask.image) >= 128


WHITE_BOX = np.asarray(box(1, 0, "L")) == 1
CLEAR = (0, 0, 0, 0)
PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8))


def with_alpha(image: Image.Image, alpha: Image.Image) -> Image.Image:
    result = image.copy()
    result.putalpha(alpha)
    return result


BY_BRIGHTNESS = {
    "white on black": box(255, 0, "L"),
    "white on transparent": box((255, 255, 255, 255), CLEAR, "RGBA"),
    "white on transparent white": box((255, 255, 255, 255), (255, 255, 255, 0), "RGBA"),
    "light grey on black": box(180, 20, "L"),
    "1 bit": box(1, 0, "1"),
    "16 bit": box(65535, 0, "I;16"),
}


@pytest.mark.parametrize("image", BY_BRIGHTNESS.values(), ids=BY_BRIGHTNESS.keys())
def test_white_is_repainted(image: Image.Image) -> None:
    mask = decode(image)
    assert np.array_equal(repainted(mask), WHITE_BOX)
    assert mask.notes == ()


def test_white_with_a_transparent_hole_is_repainted_around_the_hole() -> None:
    mask = decode(box(CLEAR, (255, 255, 255, 255), "RGBA"))
    assert np.array_equal(repainted(mask), ~WHITE_BOX)


def test_black_and_white_on_transparent_is_read_by_brightness() -> None:
    image = box((255, 255, 255, 255), (0, 0, 0, 255), "RGBA")
    image.paste(CLEAR, (30, 0, 40, 24))
    mask = decode(image.filter(ImageFilter.SMOOTH))
    assert (repainted(mask) != WHITE_BOX).mean() < 0.05
    assert mask.notes == ()


STROKES = {
    "black": box((0, 0, 0, 255), CLEAR, "RGBA"),
    "red": box((255, 0, 0, 255), CLEAR, "RGBA"),
    "green": box((0, 255, 0, 255), (0, 255, 0, 0), "RGBA"),
    "grey on white": box((99, 99, 99, 255), (255, 255, 255, 0), "RGBA"),
    "grey and alpha": box((0, 255), (0, 0), "LA"),
}


@pytest.mark.parametrize("image", STROKES.values(), ids=STROKES.keys())
def test_strokes_on_a_transparent_canvas_are_repainted(image: Image.Image) -> None:
    mask = decode(image)
    assert np.array_equal(repainted(mask), WHITE_BOX)
    assert [note for note in mask.notes if "opaque" in note]


def test_strokes_with_soft_edges_are_repainted() -> None:
    alpha = box(255, 0, "L").filter(ImageFilter.GaussianBlur(1))
    mask = decode(with_alpha(Image.new("RGB", SIZE), alpha))
    assert (repainted(mask) != WHITE_BOX).mean() < 0.05


def test_strokes_in_a_file_with_loss_are_repainted() -> None:
    large = box((200, 30, 30, 255), (200, 30, 30, 0), "RGBA").resize((400, 240), Image.Resampling.NEAREST)
    mask = decode(large, "WEBP", quality=60)
    assert (repainted(mask) != WHITE_BOX.repeat(10, 0).repeat(10, 1)).mean() < 0.02


ZERO_AND_ONE = {
    "8 bit": box(1, 0, "L"),
    "16 bit": box(1, 0, "I;16"),
    "RGB": box((1, 1, 1), (0, 0, 0), "RGB"),
    "RGB, opaque alpha": box((1, 1, 1, 255), (0, 0, 0, 255), "RGBA"),
    "grey, opaque alpha": box((1, 255), (0, 255), "LA"),
}


@pytest.mark.parametrize("image", ZERO_AND_ONE.values(), ids=ZERO_AND_ONE.keys())
def test_values_0_and_1_are_black_and_white(image: Image.Image) -> None:
    mask = decode(image)
    assert np.array_equal(repainted(mask), WHITE_BOX)
    assert [note for note in mask.notes if "0 and 1" in note]


def test_32_bit_values_0_and_1_are_black_and_white() -> None:
    mask = decode(box(1, 0, "I"), "TIFF")
    assert np.array_equal(repainted(mask), WHITE_BOX)


def test_float_values_from_0_to_1_are_levels() -> None:
    values = WHITE_BOX.astype(np.float32)
    values[0, :2] = 0.4, 0.6
    mask = decode(Image.fromarray(values), "TIFF")
    assert repainted(mask)[0, :2].tolist() == [False, True]
    assert np.array_equal(repainted(mask)[1:], WHITE_BOX[1:])


UNCLEAR = {
    "image with an erased hole": with_alpha(PHOTO, box(0, 255, "L")),
    "one colour with an erased hole": box((120, 200, 80, 0), (120, 200, 80, 255), "RGBA"),
    "black with an erased hole": box(CLEAR, (0, 0, 0, 255), "RGBA"),
    "cut-out": with_alpha(PHOTO, box(255, 0, "L")),
}


@pytest.mark.parametrize("image", UNCLEAR.values(), ids=UNCLEAR.keys())
def test_transparent_mask_with_several_meanings_is_refused(image: Image.Image) -> None:
    with pytest.raises(InvalidImage, match="not clear") as caught:
        decode(image)
    assert caught.value.field == "mask"


NOTHING = {
    "black": Image.new("L", SIZE, 0),
    "black, opaque": Image.new("RGBA", SIZE, (0, 0, 0, 255)),
    "transparent": Image.new("RGBA", SIZE, CLEAR),
    "white, transparent": Image.new("RGBA", SIZE, (255, 255, 255, 0)),
    "1 everywhere": Image.new("L", SIZE, 1),
    "0 to 2": box(2, 0, "L"),
    "dark": box(127, 0, "L"),
    "faint white": box((255, 255, 255, 1), CLEAR, "RGBA"),
}


@pytest.mark.parametrize("image", NOTHING.values(), ids=NOTHING.keys())
def test_mask_that_repaints_nothing_is_refused(image: Image.Image) -> None:
    with pytest.raises(InvalidImage, match="repaints nothing") as caught:
        decode(image)
    assert caught.value.field == "mask"


@pytest.mark.parametrize("image", [Image.new("L", SIZE, 255), Image.new("L", SIZE, 128)])
def test_mask_that_repaints_everything_is_noted(image: Image.Image) -> None:
    assert [note for note in decode(image).notes if "no effect" in note]


def test_opaque_mask_keeps_its_levels() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert decode(ramp).image.tobytes() == ramp.tobytes()
    assert decode(ImageOps.invert(ramp).convert("RGB")).image.mode == "L"


def test_mask_whose_white_pixels_are_cropped_is_refused() -> None:
    mask = Image.new("L", (104, 64))
    mask.paste(255, (0, 0, 3, 64))
    with pytest.raises(InvalidImage, match="repaints nothing") as caught:
        resize_mask(mask, (104, 64), (96, 64), "mask")
    assert caught.value.field == "mask"


def disc(width: int, height: int, radius: float) -> Image.Image:
    """Returns a centred white disc on black, in mode L."""
    rows, columns = np.ogrid[:height, :width]
    inside = (columns - width / 2 + 0.5) ** 2 + (rows - height / 2 + 0.5) ** 2 <= radius**2
    return Image.fromarray((inside * 255).astype(np.uint8))


@pytest.mark.parametrize("source_size", [(1000, 600), (700, 1500), (333, 500), (104, 64)])
def test_resized_mask_is_aligned_with_resized_image(source_size: tuple[int, int]) -> None:
    size = input_image_size(source_size)
    source = disc(*source_size, radius=min(source_size) / 3)
    mask = resize_mask(source, source_size, size, "mask")
    image = resize_image(source.convert("RGB"), size)[..., 0]
    assert mask.shape == (size[1], size[0])
    assert ((mask == 255) != (image > 127)).mean() < 0.005


@pytest.mark.parametrize("factor", [0.5, 2, 3])
def test_mask_of_another_size_is_stretched_to_image(factor: float) -> None:
    source_size, size = (320, 200), input_image_size((320, 200))
    expected = resize_mask(disc(*source_size, radius=60), source_size, size, "mask")
    stretched = resize_mask(
        disc(round(320 * factor), round(200 * factor), radius=60 * factor), source_size, size, "mask"
    )
    assert (expected != stretched).mean() < 0.01


def test_mask_of_another_aspect_ratio_is_stretched_to_image() -> None:
    top_quarter = Image.new("L", (10, 100))
    top_quarter.paste(255, (0, 0, 10, 25))
    mask = resize_mask(top_quarter, (320, 208), (320, 208), "mask")
    assert (mask[:52] == 255).all()
    assert (mask[52:] == 0).all()


def test_mask_levels_from_128_become_255_and_others_0() -> None:
    levels = Image.fromarray(np.tile(np.array([0, 1, 127, 128, 254, 255], np.uint8).repeat(16), (64, 1)))
    mask = resize_mask(levels, (96, 64), (96, 64), "mask")
    assert [int(level) for level in mask[0, ::16]] == [0, 0, 0, 255, 255, 255]
