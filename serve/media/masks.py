"""Decodes and resizes masks, and determines which pixels are repainted; all functions block.

A mask is read by its brightness: white is repainted, black and transparent pixels are kept. Two kinds of masks without
white are accepted: strokes of one colour on a transparent canvas, and masks with the values 0 and 1. A mask that would
repaint nothing, or that can be read in several ways, is refused.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from serve.errors import InvalidImage
from serve.media.image_codec import to_eight_bits, to_grayscale, to_rgba
from serve.media.image_file import decoder_errors, open_image
from serve.model_specs import MASK_THRESHOLD, MaskArray, Size

FLAT_COLOUR_RANGE = 16
"""Levels by which lossy compression changes a colour."""
INTEGER_MODES = ("I;16", "I")
"""Pillow's modes of more than 8 bits whose values are integers. In float masks, 1 is white and 0.5 is grey."""
NEAR_BLACK, NEAR_WHITE = 32, 223
"""Levels up to and from which lossy compression or smoothing may leave black and white."""
MAX_GREY_SHARE = 0.2
"""Smooth edges make up less of a mask than this."""

WHAT_TO_SEND = "send a mask that is white where the image is repainted and black elsewhere"


@dataclass(frozen=True, slots=True)
class Mask:
    """A decoded mask."""

    image: Image.Image
    """Mode L; pixels from `MASK_THRESHOLD` on are repainted."""
    notes: tuple[str, ...] = ()
    """Log lines for the caller: how the mask was read."""


def decode_mask(content: bytes, field: str, max_megapixels: float) -> Mask:
    """Returns the first frame of a mask file, with EXIF orientation applied.

    Raises `InvalidImage` for `field`, also for a mask that repaints nothing or can be read in several ways.
    """
    with decoder_errors(field, max_megapixels):
        mask = _read(open_image(content, field, max_megapixels), field)
        darkest, brightest = _level_range(mask.image.histogram())
        if brightest < MASK_THRESHOLD:
            raise InvalidImage(field, f"the mask repaints nothing, since it has no white pixel; {WHAT_TO_SEND}")
        if darkest >= MASK_THRESHOLD:
            return Mask(mask.image, (*mask.notes, "mask has no effect: it repaints the whole image"))
        return mask


def resize_mask(mask: Image.Image, image_size: Size, size: Size, field: str) -> MaskArray:
    """Returns a mask of mode L as [height, width] of 0 (keep) and 255 (repaint), aligned with the resized image.

    `image_size` is the size of the decoded image before it was resized. A mask of another size is stretched to it.
    Raises `InvalidImage` for `field` if nothing to repaint is left.
    """
    stretched = mask.resize(image_size, Image.Resampling.NEAREST)
    cropped = np.asarray(ImageOps.fit(stretched, size, method=Image.Resampling.NEAREST))
    resized = np.where(cropped >= MASK_THRESHOLD, np.uint8(255), np.uint8(0))
    if not resized.any():
        why = f"the mask repaints nothing: its white pixels are cropped, or too few to be seen at {size[0]}x{size[1]}"
        raise InvalidImage(field, why)
    return resized


def _read(image: Image.Image, field: str) -> Mask:
    if image.mode[:4] in INTEGER_MODES:
        values = np.asarray(image)
        if (values.min(), values.max()) == (0, 1):
            return _read_zero_and_one(Image.fromarray((values > 0).astype(np.uint8)))
    image = to_eight_bits(image)
    if image.has_transparency_data:
        return _read_with_alpha(image, field)
    return _read_brightness(image)


def _read_brightness(image: Image.Image) -> Mask:
    """An 8-bit mask without transparent pixels."""
    grey = to_grayscale(image)
    return _read_zero_and_one(grey) if grey.getextrema() == (0, 1) else Mask(grey)


def _read_zero_and_one(image: Image.Image) -> Mask:
    return Mask(image.point([0] + [255] * 255), ("mask: its values 0 and 1 are read as black and white",))


def _read_with_alpha(image: Image.Image, field: str) -> Mask:
    rgba = to_rgba(image)
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return _read_brightness(image)
    if alpha.getextrema() != (0, 255):
        return Mask(to_grayscale(image))
    opaque = alpha.point([0] * 255 + [255])
    colours = rgba.convert("RGB").histogram(opaque)
    ranges = [_level_range(colours[start : start + 256]) for start in (0, 256, 512)]
    if all(highest - lowest <= FLAT_COLOUR_RANGE for lowest, highest in ranges):
        is_white = all(lowest >= NEAR_WHITE for lowest, _ in ranges)
        return Mask(to_grayscale(image)) if is_white else _read_strokes(alpha, field)
    grey = to_grayscale(image)
    levels = grey.histogram(opaque)
    if sum(levels[NEAR_BLACK + 1 : NEAR_WHITE]) > MAX_GREY_SHARE * sum(levels):
        why = f"the mask has transparent pixels and colours, and it is not clear which it repaints; {WHAT_TO_SEND}"
        raise InvalidImage(field, why)
    return Mask(grey)


def _read_strokes(alpha: Image.Image, field: str) -> Mask:
    """A mask whose opaque pixels have one colour other than white.

    If most pixels are opaque, the caller may have erased the pixels to repaint instead.
    """
    levels = alpha.histogram()
    if 2 * sum(levels[MASK_THRESHOLD:]) > sum(levels):
        why = f"it is not clear whether the mask repaints its opaque or its transparent pixels; {WHAT_TO_SEND}"
        raise InvalidImage(field, why)
    return Mask(alpha, ("mask: its opaque pixels are repainted, since they have one colour on a transparent canvas",))


def _level_range(histogram: list[int]) -> tuple[int, int]:
    """The lowest and the highest level that occurs."""
    levels = [level for level, count in enumerate(histogram) if count > 0]
    return levels[0], levels[-1]
