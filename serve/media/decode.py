"""Decodes and resizes input images and masks. Blocking: call it in a thread.

Input is untrusted: only harmless formats are tried, the size is checked before any pixel is decoded, and every decoder
error becomes an `InvalidImage`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from serve.errors import InvalidImage
from serve.model_specs import Size

FULL_SCALES = {"I;16": (65535.0,), "I": (255.0, 65535.0, 2.0**31 - 1), "F": (1.0, 255.0, 65535.0)}
"""What is white in modes of more than 8 bits: the first of these that no pixel exceeds.

Files do not say it where pixels are 32-bit integers or floats; a float picture brighter than all goes up to its peak.
"""
STRAIGHT = {"La": "LA", "RGBa": "RGBA"}
"""Modes whose colours are multiplied by alpha, and what they are without that."""


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Mode RGB in sRGB, what is transparent laid on `background`. The embedded colour profile is followed."""
    profile = image.info.get("icc_profile")
    opaque = _opaque(_eight_bit(image), background)
    return _in_srgb(opaque, profile) if profile else _in_mode(opaque, "RGB")


def to_grayscale(image: Image.Image, background: str = "black") -> Image.Image:
    """Mode L, what is transparent laid on `background`. Values are taken as they are, without a colour profile."""
    opaque = _opaque(_eight_bit(image), background)
    return opaque if opaque.mode == "L" else _in_mode(opaque, "RGB").convert("L")


def _eight_bit(image: Image.Image) -> Image.Image:
    """The picture with at most 8 bits a channel; Pillow's own conversion would cut off what is brighter than 255."""
    mode = image.mode[:4]
    if mode not in FULL_SCALES:
        return image
    values = np.asarray(image, dtype=np.float32)
    peak = float(values.max(initial=0, where=np.isfinite(values)))
    white = next((scale for scale in FULL_SCALES[mode] if peak <= scale), peak)
    grey = _levels(values / white)
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey
    return Image.merge("LA", (grey, _levels(values != key)))


def _levels(shares: np.ndarray) -> Image.Image:
    """Mode L of shares of white; what is not a number is black."""
    return Image.fromarray((np.nan_to_num(shares, nan=0).clip(0, 1) * 255 + 0.5).astype(np.uint8))


def _opaque(image: Image.Image, background: str) -> Image.Image:
    if not image.has_transparency_data:
        return image
    layer = image.convert(STRAIGHT.get(image.mode, image.mode)).convert("RGBA")
    ground = Image.new("RGBA", layer.size, background)
    ground.alpha_composite(layer)
    return ground.convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The colours that `profile` means, or the bare numbers where it is damaged or made for another kind of picture."""
    image = image if image.mode == "CMYK" else _in_mode(image, "RGB")
    with suppress(ImageCms.PyCMSError, OSError):
        meant = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" not in ImageCms.getProfileDescription(meant):
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, meant, srgb, outputMode="RGB")
            return converted or image
    return _in_mode(image, "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Without the copy that Pillow makes of a picture that has the mode already."""
    return image if image.mode == mode else image.convert(mode)


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What Pillow may try. Formats that run programs (PostScript, PDF) or read other files are not among them."""

MAX_SCANS = 100
"""A progressive JPEG has about ten. Each takes time for the whole area, and millions fit in a small file."""
START_OF_SCAN = b"\xff\xda"


def decode_image(content: bytes, field: str, max_megapixels: float) -> Image.Image:
    """The picture in `content`, upright, as RGB; the first of an animation; transparency on white.

    Raises `InvalidImage` naming `field`.
    """
    with _refusals(field):
        return to_rgb(_upright(content, field, max_megapixels))


def decode_mask(content: bytes, field: str, max_megapixels: float) -> Image.Image:
    """The mask in `content`, upright, as L; transparency on black, so what nobody painted on is kept.

    Raises `InvalidImage` naming `field`.
    """
    with _refusals(field):
        return to_grayscale(_upright(content, field, max_megapixels))


def _upright(content: bytes, field: str, max_megapixels: float) -> Image.Image:
    image = Image.open(BytesIO(content), formats=FORMATS)
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise InvalidImage(field, f"the picture is {width}x{height}; at most {max_megapixels:g} megapixels are taken")
    if image.format in ("JPEG", "MPO") and content.count(START_OF_SCAN) > MAX_SCANS:
        raise InvalidImage(field, f"the picture is a JPEG of more than {MAX_SCANS} scans; save it anew")
    image.load()
    # In place, so that a damaged EXIF block can spoil its own rewriting only. It is no reason to refuse a picture.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


@contextmanager
def _refusals(field: str) -> Iterator[None]:
    """Makes every fault of the content a `InvalidImage`: what decoders raise on hostile bytes is not documented."""
    try:
        yield
    except InvalidImage:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise InvalidImage(field, f"this is no picture that can be read; send one of {known}") from error
    except Image.DecompressionBombError as error:
        raise InvalidImage(field, "the picture has more pixels than are taken") from error
    except Exception as error:
        raise InvalidImage(field, "the picture is cut short or damaged") from error


ImageArray = npt.NDArray[np.uint8]

MASK_THRESHOLD = 128
"""Grey level from which a mask counts as white."""


def resize_image(image: Image.Image, size: Size) -> ImageArray:
    """`image`, in mode RGB, as [height, width, 3]. A picture of this size already comes back unchanged to the bit."""
    return np.array(ImageOps.fit(image, size, method=Image.Resampling.LANCZOS))


def resize_mask(mask: Image.Image, picture_size: Size, size: Size) -> ImageArray:
    """`mask`, in mode L, as [height, width] of 0 (keep) and 255 (repaint), in register with the fitted picture.

    `picture_size` is that of the decoded picture before it was fitted; a mask of another size is stretched to it.
    """
    whole = mask.resize(picture_size, Image.Resampling.NEAREST)
    cropped = np.asarray(ImageOps.fit(whole, size, method=Image.Resampling.NEAREST))
    return np.where(cropped >= MASK_THRESHOLD, np.uint8(255), np.uint8(0))
