"""Pixels to the bytes of a picture file. Blocks while it works: call it in a thread."""

from io import BytesIO
from typing import Literal

from PIL import Image

from serve.media.decode import ImageArray

ImageFormat = Literal["webp", "jpg", "png"]

MEDIA_TYPES: dict[str, str] = {"webp": "image/webp", "jpg": "image/jpeg", "png": "image/png"}
"""Format, which is the file's extension too, to its media type."""


def encode_image(pixels: ImageArray, file_format: ImageFormat, quality: int) -> tuple[bytes, str]:
    """The file and its media type, from [height, width, 3] in RGB.

    `quality`, 0 to 100, is that of jpg and webp; png loses nothing. The same pixels give the same bytes, and no
    metadata is written.
    """
    media_type = MEDIA_TYPES[file_format]
    options = {} if file_format == "png" else {"quality": quality, "optimize": True}
    file = BytesIO()
    Image.fromarray(pixels).save(file, media_type.removeprefix("image/"), **options)
    return file.getvalue(), media_type
