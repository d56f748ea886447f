"""Opens image files of callers with Pillow, within limits; all functions block, so call them in a thread.

Input is untrusted: only formats with safe decoders are tried, the size is checked before any pixel is decoded, and
every decoder error becomes `InvalidImage`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import IO

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from serve.errors import InvalidImage
from serve.media.jpeg_segments import check_jpeg_segments, is_jpeg
from serve.media.png_chunks import is_png, strip_png
from serve.model_specs import Size

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""The formats that Pillow may try. Decoders that run programs (EPS, PDF) or open other files are excluded."""

Reader = Callable[[IO[bytes], str | bytes], ImageFile.ImageFile]


def open_image(content: bytes, field: str, max_megapixels: float) -> Image.Image:
    """Returns the first frame of an image file, decoded, with its EXIF orientation applied.

    Call it within `decoder_errors`. Raises `InvalidImage` for `field`.
    """
    if len(content) == 0:
        raise InvalidImage(field, "the file is empty: it has 0 bytes")
    icc_profile: bytes | None = None
    if is_png(content):
        content, icc_profile = strip_png(content, field)
    elif is_jpeg(content):
        check_jpeg_segments(content, field)
    image = _open(content, field, max_megapixels)
    image.load()
    if icc_profile is not None:
        image.info["icc_profile"] = icc_profile
    # A damaged EXIF block is no reason to refuse an image. In place, the image is rotated before the block is
    # rewritten, so an error while rewriting does not undo the rotation.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return _without_empty_alpha(image)


@contextmanager
def decoder_errors(field: str, max_megapixels: float) -> Iterator[None]:
    """Converts every exception to `InvalidImage`, because decoders do not document what they raise on hostile input."""
    try:
        yield
    except InvalidImage:
        raise
    except Image.DecompressionBombError as error:
        why = f"the image has too many pixels to decode; at most {max_megapixels:g} megapixels are taken"
        raise InvalidImage(field, why) from error
    except Exception as error:
        raise InvalidImage(field, "the image file is truncated or damaged") from error


def _open(content: bytes, field: str, max_megapixels: float) -> ImageFile.ImageFile:
    """Reads the header of an image file, and checks the size in it."""
    try:
        image = Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        what = "image file is truncated, damaged or" if _readers(content) else "file is not an image or is"
        formats = ", ".join(FORMATS)
        raise InvalidImage(field, f"the {what} in an unsupported format; send one of {formats}") from error
    except Image.DecompressionBombError:
        # Pillow's own limit, which does not say how large the image is.
        image = _readers(content)[0](BytesIO(content), "")
    _check_size(image.size, field, max_megapixels)
    return image


def _readers(content: bytes) -> list[Reader]:
    """Pillow's readers of the formats whose signature the file has."""
    Image.init()  # `Image.open` loads only some formats before it raises `DecompressionBombError`.
    formats = [Image.OPEN[name] for name in FORMATS]
    return [reader for reader, accept in formats if accept is not None and accept(content[:16]) is True]


def _check_size(size: Size, field: str, max_megapixels: float) -> None:
    width, height = size
    megapixels = width * height / 1e6
    if megapixels > max_megapixels:
        why = (
            f"the image is {width}x{height}, which is {megapixels:.4g} megapixels; at most {max_megapixels:g} are taken"
        )
        raise InvalidImage(field, why)


def _without_empty_alpha(image: Image.Image) -> Image.Image:
    """Without the alpha channel of a BMP that is 0 everywhere: clipboards write it for images that are opaque."""
    is_empty = image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)
    return image.convert("RGB") if is_empty else image
