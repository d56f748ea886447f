"""Converts the files of OpenAI's image edits to input images and masks of this service; all functions block."""

from io import BytesIO

from PIL import Image

from serve.errors import InvalidImage
from serve.media.image_codec import decode_image, resize_image, to_eight_bits, to_rgba
from serve.media.image_file import decoder_errors, open_image
from serve.media.masks import resize_mask
from serve.model_specs import MASK_THRESHOLD, Size

OPAQUE = 255
FAST_COMPRESSION = 1
"""zlib's level. The files are decoded soon, in this process."""


def convert_edit(
    image: bytes, mask: bytes | None, size: Size | None, max_megapixels: float
) -> tuple[bytes, bytes | None]:
    """The image and the mask as files. Transparent areas of `mask` become white, and are repainted.

    With a `size`, both are scaled to cover it and cropped around the centre. Raises `InvalidImage` for `image` or
    `mask`.
    """
    repainted = None if mask is None else _decode_mask(mask, "mask", max_megapixels)
    if size is None:
        return image, None if repainted is None else _png(repainted)
    decoded = decode_image(image, "image", max_megapixels)
    resized_mask = None
    if repainted is not None:
        resized_mask = _png(Image.fromarray(resize_mask(repainted, decoded.size, size, "mask")))
    return _png(Image.fromarray(resize_image(decoded, size))), resized_mask


def _decode_mask(content: bytes, field: str, max_megapixels: float) -> Image.Image:
    """A mask of OpenAI's API in mode L, white where its alpha is under a half."""
    with decoder_errors(field, max_megapixels):
        image = to_eight_bits(open_image(content, field, max_megapixels))
        alpha = to_rgba(image).getchannel("A")
        if not any(alpha.histogram()[:MASK_THRESHOLD]):
            why = "the mask has no transparent pixel; make the areas transparent that are to be repainted"
            raise InvalidImage(field, why)
        return alpha.point([OPAQUE if level < MASK_THRESHOLD else 0 for level in range(256)])


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "png", compress_level=FAST_COMPRESSION)
    return file.getvalue()
