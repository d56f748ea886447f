"""Decoding of images and masks: colours, transparency, orientation, limits and damaged files."""

import random
import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from serve.errors import InvalidImage
from serve.media.image_codec import decode_image
from serve.media.image_file import FORMATS
from serve.media.masks import decode_mask

# Pillow warns about damaged files while it decodes them.
pytestmark = pytest.mark.filterwarnings(
    "error", "ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning"
)

SIZE = (48, 32)
RAMP = np.linspace(0, 1, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0])
PHOTO = Image.fromarray((np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]]) * 255).astype(np.uint8))
STRAIGHT_ALPHA, PREMULTIPLIED_ALPHA = (struct.pack("<HHII", 338, 3, 1, kind) for kind in (2, 1))
"""The TIFF tag `ExtraSamples`, with both kinds of alpha."""
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(map(int, colour)) for colour in np.unique(np.asarray(image).reshape(-1, 3), axis=0)}


def greys(image: Image.Image) -> list[int]:
    """Returns the grey levels of an RGB image, row by row."""
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return [int(level) for level in pixels[..., 0].flatten()]


def mean_difference(first: Image.Image, second: Image.Image) -> float:
    return float(np.abs(np.asarray(first, np.float32) - np.asarray(second, np.float32)).mean())


@pytest.mark.parametrize("file_format", FORMATS)
def test_each_format_is_decoded(file_format: str) -> None:
    image = decode_image(
        encode(PHOTO, file_format, **({} if file_format in ("PNG", "BMP", "TIFF", "GIF") else {"quality": 95})),
        "image",
        1,
    )
    assert (image.mode, image.size) == ("RGB", SIZE)
    assert mean_difference(image, PHOTO) < (5 if file_format in ("GIF", "WEBP", "JPEG", "AVIF") else 0.001)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV"])
def test_opaque_modes_keep_their_colours(mode: str) -> None:
    flat = Image.new("RGB", SIZE, (255, 255, 255))
    flat.paste((0, 0, 0), (0, 0, 20, 32))
    file_format = "PNG" if mode in ("1", "L", "P", "RGB") else "TIFF"
    source = flat.convert("RGB").convert(mode) if mode != "HSV" else flat
    image = decode_image(encode(source, file_format), "image", 1)
    assert image.mode == "RGB"
    assert mean_difference(image, flat) < 1


def test_cmyk_jpeg_keeps_its_colours() -> None:
    image = decode_image(encode(PHOTO.convert("CMYK"), "JPEG", quality=95), "image", 1)
    assert mean_difference(image, PHOTO) < 5


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        (np.array([[0, 128, 257, 32768, 65535]], np.uint16), [0, 0, 1, 128, 255]),
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 257, 32768, 65535]], np.int32), [0, 1, 128, 255]),
        (np.array([[-5, 0, 2**30, 2**31 - 1]], np.int32), [0, 0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 128, 255]], np.float32), [0, 128, 255]),
        (np.array([[0, 32767.5, 65535]], np.float32), [0, 128, 255]),
        (np.array([[0, 5e5, 1e6]], np.float32), [0, 128, 255]),
        (np.array([[-1, np.nan, np.inf, -np.inf, 1]], np.float32), [0, 0, 255, 0, 255]),
        (np.zeros((1, 3), np.float32), [0, 0, 0]),
        (np.zeros((1, 3), np.int32), [0, 0, 0]),
    ],
)
def test_tiff_with_more_than_8_bits_is_scaled(values: np.ndarray, levels: list[int]) -> None:
    assert greys(decode_image(encode(Image.fromarray(values), "TIFF"), "image", 1)) == levels


def test_16_bit_png_is_scaled() -> None:
    content = encode(Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16)), "PNG")
    assert greys(decode_image(content, "image", 1)) == [0, 1, 128, 255]


def test_16_bit_big_endian_tiff_is_scaled() -> None:
    image = Image.frombytes("I;16B", (2, 1), b"\x80\x00\xff\xff")
    assert greys(decode_image(encode(image, "TIFF"), "image", 1)) == [128, 255]


def palette_image(index: int) -> Image.Image:
    """Returns an image with a palette of four entries, where all pixels have the entry `index`."""
    image = Image.new("P", SIZE, index)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    return image


CLEAR = Image.new("RGBA", SIZE, (255, 0, 0, 0))
CLEAR_GREY = Image.new("LA", SIZE, (0, 0))
TRANSPARENT = {
    "RGBA": encode(CLEAR, "PNG"),
    "LA": encode(CLEAR_GREY, "PNG"),
    "1 bit with transparent value": encode(Image.new("1", SIZE, 0), "PNG", transparency=0),
    "L with transparent value": encode(Image.new("L", SIZE, 7), "PNG", transparency=7),
    "RGB with transparent colour": encode(Image.new("RGB", SIZE, (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    "16 bit with transparent value": encode(Image.new("I;16", SIZE, 700), "PNG", transparency=700),
    "palette with transparent entry": encode(palette_image(3), "PNG", transparency=3),
    "palette with alpha": encode(palette_image(3), "PNG", transparency=b"\xff\xff\xff\x00"),
    "GIF": encode(palette_image(3), "GIF", transparency=3),
    "WebP": encode(CLEAR, "WEBP", lossless=True),
    "AVIF": encode(CLEAR, "AVIF"),
    "TIFF RGBA": encode(CLEAR, "TIFF"),
    "TIFF LA": encode(CLEAR_GREY, "TIFF"),
    "TIFF La": encode(CLEAR_GREY, "TIFF").replace(STRAIGHT_ALPHA, PREMULTIPLIED_ALPHA),
    "TIFF PA": encode(Image.new("PA", SIZE, (0, 0)), "TIFF"),
}


@pytest.mark.parametrize("content", TRANSPARENT.values(), ids=TRANSPARENT.keys())
def test_transparency_becomes_white_in_image_and_repaints_nothing_in_mask(content: bytes) -> None:
    assert colours(decode_image(content, "image", 1)) == {WHITE}
    with pytest.raises(InvalidImage, match="repaints nothing"):
        decode_mask(content, "mask", 1)


def test_transparent_value_leaves_other_values_opaque() -> None:
    content = encode(Image.fromarray(np.array([[0, 700, 65535]], np.uint16)), "PNG", transparency=700)
    assert greys(decode_image(content, "image", 1)) == [0, 255, 255]
    assert list(decode_mask(content, "mask", 1).image.tobytes()) == [0, 0, 255]


def test_partial_transparency_is_blended_with_background() -> None:
    content = encode(Image.new("RGBA", SIZE, (255, 0, 0, 128)), "PNG")
    assert colours(decode_image(content, "image", 1)) == {(255, 127, 127)}


def test_opaque_alpha_channel_changes_no_pixel() -> None:
    opaque = PHOTO.copy()
    opaque.putalpha(255)
    assert decode_image(encode(opaque, "PNG"), "image", 1).tobytes() == PHOTO.tobytes()


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_first_frame_is_decoded(file_format: str) -> None:
    first, second = (Image.new("RGB", SIZE, colour) for colour in (BLACK, WHITE))
    image = decode_image(encode(first, file_format, save_all=True, append_images=[second]), "image", 1)
    assert image.size == SIZE
    assert max(max(colour) for colour in colours(image)) < 20


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    rotated = PHOTO.transpose(inverse[orientation]) if orientation in inverse else PHOTO
    content = encode(rotated, file_format, exif=exif, quality=95)
    image = decode_image(content, "image", 1)
    assert image.size == SIZE
    assert mean_difference(image, PHOTO) < 6
    assert decode_mask(content, "mask", 1).image.size == SIZE


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff broken"])
def test_damaged_exif_block_is_ignored(exif: bytes) -> None:
    content = encode(PHOTO, "PNG", exif=exif)
    assert decode_image(content, "image", 1).tobytes() == PHOTO.tobytes()


def profile_with_red_and_blue_swapped(name: str) -> bytes:
    """Returns an sRGB profile with its red and blue primaries swapped; `name` has 4 characters and replaces "sRGB"."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12)
    directory = {bytes(profile[start : start + 4]): slice(start + 4, start + 12) for start in entries}
    red, blue = directory[b"rXYZ"], directory[b"bXYZ"]
    profile[red], profile[blue] = profile[blue], profile[red]
    return bytes(profile).replace("sRGB".encode("utf-16-be"), name.encode("utf-16-be"))


def test_embedded_colour_profile_is_applied() -> None:
    profile = profile_with_red_and_blue_swapped("sBGR")
    content = encode(Image.new("RGB", SIZE, (250, 100, 10)), "PNG", icc_profile=profile)
    ((red, green, blue),) = colours(decode_image(content, "image", 1))
    assert np.allclose((red, green, blue), (10, 100, 250), atol=5)


def test_profile_named_srgb_changes_no_pixel() -> None:
    content = encode(PHOTO, "PNG", icc_profile=profile_with_red_and_blue_swapped("sRGB"))
    assert decode_image(content, "image", 1).tobytes() == PHOTO.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("profile", [b"no profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()])
def test_invalid_or_unsuitable_profile_is_ignored(mode: str, profile: bytes) -> None:
    image = PHOTO.convert(mode)
    content = encode(image, "TIFF", icc_profile=profile)
    assert decode_image(content, "image", 1).tobytes() == image.convert("RGB").tobytes()


NOT_IMAGES = {
    "one byte": b"\x00",
    "text": b"hello, I am an image",
    "HTML": b"<html><body>404</body></html>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    **{name: encode(PHOTO, name) for name in ("EPS", "PDF", "PPM", "ICO", "TGA", "JPEG2000")},
}


@pytest.mark.parametrize("content", NOT_IMAGES.values(), ids=NOT_IMAGES.keys())
def test_file_in_unsupported_format_is_rejected(content: bytes) -> None:
    with pytest.raises(InvalidImage, match="PNG, JPEG, WEBP") as caught:
        decode_image(content, "image", 1)
    assert caught.value.field == "image"


@pytest.mark.parametrize("kept_fraction", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("file_format", FORMATS)
def test_truncated_image_is_rejected(file_format: str, kept_fraction: float) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    content = encode(noise, file_format)
    with pytest.raises(InvalidImage, match=r"truncated|supported format"):
        decode_image(content[: int(len(content) * kept_fraction)], "image", 1)


@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged_file_is_decoded_or_rejected_with_invalid_image(file_format: str) -> None:
    rng = random.Random(file_format)
    content = encode(PHOTO.resize((16, 16)), file_format)
    rejected = 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(min(len(damaged), 300))] = rng.randrange(256)
        try:
            decode_image(bytes(damaged), "image", 0.1)
            decode_mask(bytes(damaged), "mask", 0.1)
        except InvalidImage:
            rejected += 1
    assert rejected > 0
