"""Turns the bytes of a caller's picture into pixels, or says why not. Blocks while it works: call it in a thread.

The content is hostile until shown otherwise: only harmless formats are tried, the size is read from the header before
a pixel is decoded, and whatever a decoder trips over is a refusal. Knows nothing of where the bytes came from.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from serve.errors import PictureRefused
from serve.media.colours import to_grey, to_rgb

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What Pillow may try. Formats that run programs (PostScript, PDF) or read other files are not among them."""

MAX_SCANS = 100
"""A progressive JPEG has about ten. Each takes time for the whole area, and millions fit in a small file."""
START_OF_SCAN = b"\xff\xda"


def decode(content: bytes, field: str, max_megapixels: float) -> Image.Image:
    """The picture in `content`, upright, as RGB; the first of an animation; transparency on white.

    Raises `PictureRefused` naming `field`.
    """
    with _refusals(field):
        return to_rgb(_upright(content, field, max_megapixels))


def decode_mask(content: bytes, field: str, max_megapixels: float) -> Image.Image:
    """The mask in `content`, upright, as L; transparency on black, so what nobody painted on is kept.

    Raises `PictureRefused` naming `field`.
    """
    with _refusals(field):
        return to_grey(_upright(content, field, max_megapixels))


def _upright(content: bytes, field: str, max_megapixels: float) -> Image.Image:
    image = Image.open(BytesIO(content), formats=FORMATS)
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise PictureRefused(field, f"the picture is {width}x{height}; at most {max_megapixels:g} megapixels are taken")
    if image.format in ("JPEG", "MPO") and content.count(START_OF_SCAN) > MAX_SCANS:
        raise PictureRefused(field, f"the picture is a JPEG of more than {MAX_SCANS} scans; save it anew")
    image.load()
    # In place, so that a damaged EXIF block can spoil its own rewriting only. It is no reason to refuse a picture.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


@contextmanager
def _refusals(field: str) -> Iterator[None]:
    """Makes every fault of the content a `PictureRefused`: what decoders raise on hostile bytes is not documented."""
    try:
        yield
    except PictureRefused:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise PictureRefused(field, f"this is no picture that can be read; send one of {known}") from error
    except Image.DecompressionBombError as error:
        raise PictureRefused(field, "the picture has more pixels than are taken") from error
    except Exception as error:
        raise PictureRefused(field, "the picture is cut short or damaged") from error
