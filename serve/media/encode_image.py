"""Encodes pixels as image files; it blocks, so call it in a thread."""

from io import BytesIO

from PIL import Image

from serve.model_specs import ImageArray, ImageFormat

MEDIA_TYPES: dict[str, str] = {"webp": "image/webp", "jpg": "image/jpeg", "png": "image/png"}
"""Maps each `ImageFormat`, which is also the file extension, to its media type."""


def encode_image(pixels: ImageArray, file_format: ImageFormat, quality: int) -> bytes:
    """Encodes RGB `pixels` of [height, width, 3] as a file.

    `quality` is 0 to 100 for webp and jpg; png is lossless and ignores it. The same pixels give the same bytes, and the
    file has no metadata.
    """
    options = {} if file_format == "png" else {"quality": quality, "optimize": True}
    file = BytesIO()
    Image.fromarray(pixels).save(file, MEDIA_TYPES[file_format].removeprefix("image/"), **options)
    return file.getvalue()
