"""Brings a decoded picture of any mode to 8 bits of sRGB, or of grey, without transparency.

Knows Pillow's modes, and nothing of files, sizes or requests.
"""

from contextlib import suppress
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

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


def to_grey(image: Image.Image, background: str = "black") -> Image.Image:
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
