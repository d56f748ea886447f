"""Encodes pixels as image files; it blocks, so call it in a thread."""

from io import BytesIO
from typing import Literal

from PIL import Image

from serve.media.decode import ImageArray

ImageFormat = Literal["webp", "jpg", "png"]

MEDIA_TYPES: dict[str, str] = {"webp": "image/webp", "jpg": "image/jpeg", "png": "image/png"}
"""Maps each `ImageFormat`, which is also the file extension, to its media type."""


def encode_image(pixels: ImageArray, file_format: ImageFormat, quality: int) -> tuple[bytes, str]:
    """Encodes RGB `pixels` of [height, width, 3], and returns the file and its media type.

    `quality` is 0 to 100 for webp and jpg; png is lossless and ignores it. The same pixels give the same bytes, and the
    file has no metadata.
    """
    media_type = MEDIA_TYPES[file_format]
    options = {} if file_format == "png" else {"quality": quality, "optimize": True}
    file = BytesIO()
    Image.fromarray(pixels).save(file, media_type.removeprefix("image/"), **options)
    return file.getvalue(), media_type
