"""Decodes, resizes and encodes images; all functions block, so call them in a thread."""

from contextlib import suppress
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, ImageOps

from serve.media.image_file import decoder_errors, open_image
from serve.model_specs import ImageArray, ImageFormat, Size

MEDIA_TYPES: dict[str, str] = {"webp": "image/webp", "jpg": "image/jpeg", "png": "image/png"}
"""Maps each `ImageFormat`, which is also the file extension, to its media type."""
WHITE_LEVELS = {"I;16": (65535.0,), "I": (255.0, 65535.0, 2.0**31 - 1), "F": (1.0, 255.0, 65535.0)}
"""Possible values of white for Pillow's modes of more than 8 bits, in ascending order.

Files with 32-bit integers or floats do not state their range, so the first value that no pixel exceeds is used. In a
float image that exceeds all of them, the brightest pixel is white.
"""
UNPREMULTIPLIED_MODES = {"La": "LA", "RGBa": "RGBA"}
"""Pillow's modes with premultiplied alpha, and the same modes with straight alpha."""


def decode_image(content: bytes, field: str, max_megapixels: float) -> Image.Image:
    """Returns the first frame of an image file in mode RGB, with EXIF orientation applied and transparency on white.

    Raises `InvalidImage` for `field`.
    """
    with decoder_errors(field, max_megapixels):
        return to_rgb(open_image(content, field, max_megapixels))


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts `image` to mode RGB in sRGB, with transparency on white. An embedded colour profile is applied."""
    profile = image.info.get("icc_profile")
    opaque = _composite(to_eight_bits(image), "white")
    return _to_mode(opaque, "RGB") if profile is None else _to_srgb(opaque, profile)


def to_grayscale(image: Image.Image) -> Image.Image:
    """Converts `image` to mode L, with transparency on black. An embedded colour profile is ignored."""
    opaque = _composite(to_eight_bits(image), "black")
    return opaque if opaque.mode == "L" else _to_mode(opaque, "RGB").convert("L")


def resize_image(image: Image.Image, size: Size) -> ImageArray:
    """Scales an RGB image to cover `size`, crops it around the centre, and returns it as [height, width, 3].

    An image that already has `size` is returned bit for bit.
    """
    return np.array(ImageOps.fit(image, size, method=Image.Resampling.LANCZOS))


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Scales modes of more than 8 bits per channel down to 8; Pillow's own conversion clips values over 255."""
    mode = image.mode[:4]  # Big-endian "I;16B" counts as "I;16".
    if mode not in WHITE_LEVELS:
        return image
    values = np.asarray(image, dtype=np.float32)
    peak = float(values.max(initial=0, where=np.isfinite(values)))
    white = next((level for level in WHITE_LEVELS[mode] if peak <= level), peak)
    grey = _grayscale_image(values / white)
    transparent_value = image.info.get("transparency")
    if not isinstance(transparent_value, int):
        return grey
    return Image.merge("LA", (grey, _grayscale_image(values != transparent_value)))


def _grayscale_image(values: np.ndarray) -> Image.Image:
    """Converts values from 0 (black) to 1 (white) to mode L. NaN becomes black."""
    return Image.fromarray((np.nan_to_num(values, nan=0).clip(0, 1) * 255 + 0.5).astype(np.uint8))


def to_rgba(image: Image.Image) -> Image.Image:
    """Converts an 8-bit image with transparency to mode RGBA."""
    return image.convert(UNPREMULTIPLIED_MODES.get(image.mode, image.mode)).convert("RGBA")


def _composite(image: Image.Image, background: str) -> Image.Image:
    """Removes transparency by compositing `image` over a background colour."""
    if not image.has_transparency_data:
        return image
    foreground = to_rgba(image)
    result = Image.new("RGBA", foreground.size, background)
    result.alpha_composite(foreground)
    return result.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Applies a colour profile; a profile that is damaged or made for another mode is ignored."""
    image = image if image.mode == "CMYK" else _to_mode(image, "RGB")
    with suppress(ImageCms.PyCMSError, OSError):
        embedded = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" not in ImageCms.getProfileDescription(embedded):
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, embedded, srgb, outputMode="RGB")
            return converted or image
    return _to_mode(image, "RGB")


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts `image` to `mode`, without the copy that Pillow makes of an image that already has it."""
    return image if image.mode == mode else image.convert(mode)


def enlarge_image(content: bytes, size: Size, file_format: ImageFormat, quality: int) -> bytes:
    """Scales an RGB image file of this service to `size`, and encodes it as `encode_image` does."""
    with Image.open(BytesIO(content)) as image:
        enlarged = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return encode_image(np.asarray(enlarged), file_format, quality)


def encode_image(pixels: ImageArray, file_format: ImageFormat, quality: int) -> bytes:
    """Encodes RGB `pixels` of [height, width, 3] as a file.

    `quality` is 0 to 100 for webp and jpg; png is lossless and ignores it. The same pixels give the same bytes, and the
    file has no metadata.
    """
    options = {} if file_format == "png" else {"quality": quality, "optimize": True}
    file = BytesIO()
    Image.fromarray(pixels).save(file, MEDIA_TYPES[file_format].removeprefix("image/"), **options)
    return file.getvalue()
