"""Which pictures are taken and how they look afterwards, and which are refused and why."""

import random
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from serve.errors import InvalidImage
from serve.media.decode import FORMATS, decode_image, decode_mask

# What Pillow says of damaged files while it reads them.
pytestmark = pytest.mark.filterwarnings(
    "error", "ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning"
)

SIZE = (48, 32)
RAMP = np.linspace(0, 1, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0])
PHOTO = Image.fromarray((np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]]) * 255).astype(np.uint8))
STRAIGHT_ALPHA, PREMULTIPLIED_ALPHA = (struct.pack("<HHII", 338, 3, 1, meaning) for meaning in (2, 1))
"""TIFF's tag that says what the extra channel is."""
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(map(int, colour)) for colour in np.unique(np.asarray(image).reshape(-1, 3), axis=0)}


def greys(image: Image.Image) -> list[int]:
    """The levels of a grey picture in RGB, row by row."""
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return [int(level) for level in pixels[..., 0].flatten()]


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


@pytest.mark.parametrize("file_format", FORMATS)
def test_each_format_is_read(file_format: str) -> None:
    image = decode_image(
        saved(PHOTO, file_format, **({} if file_format in ("PNG", "BMP", "TIFF", "GIF") else {"quality": 95})),
        "image",
        1,
    )
    assert (image.mode, image.size) == ("RGB", SIZE)
    assert difference(image, PHOTO) < (5 if file_format in ("GIF", "WEBP", "JPEG", "AVIF") else 0.001)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV"])
def test_each_mode_without_transparency_looks_as_it_did(mode: str) -> None:
    flat = Image.new("RGB", SIZE, (255, 255, 255))
    flat.paste((0, 0, 0), (0, 0, 20, 32))
    file_format = "PNG" if mode in ("1", "L", "P", "RGB") else "TIFF"
    source = flat.convert("RGB").convert(mode) if mode != "HSV" else flat
    image = decode_image(saved(source, file_format), "image", 1)
    assert image.mode == "RGB"
    assert difference(image, flat) < 1


def test_a_cmyk_jpeg_looks_as_it_did() -> None:
    image = decode_image(saved(PHOTO.convert("CMYK"), "JPEG", quality=95), "image", 1)
    assert difference(image, PHOTO) < 5


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
def test_more_than_8_bits_are_scaled_and_not_cut_off(values: np.ndarray, levels: list[int]) -> None:
    assert greys(decode_image(saved(Image.fromarray(values), "TIFF"), "image", 1)) == levels


def test_a_16_bit_png_is_scaled() -> None:
    content = saved(Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16)), "PNG")
    assert greys(decode_image(content, "image", 1)) == [0, 1, 128, 255]


def test_a_16_bit_big_endian_tiff_is_scaled() -> None:
    image = Image.frombytes("I;16B", (2, 1), b"\x80\x00\xff\xff")
    assert greys(decode_image(saved(image, "TIFF"), "image", 1)) == [128, 255]


def palette(index: int) -> Image.Image:
    """All pixels of one entry of a palette of four."""
    image = Image.new("P", SIZE, index)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    return image


CLEAR = Image.new("RGBA", SIZE, (255, 0, 0, 0))
CLEAR_GREY = Image.new("LA", SIZE, (0, 0))
TRANSPARENT = {
    "RGBA": saved(CLEAR, "PNG"),
    "LA": saved(CLEAR_GREY, "PNG"),
    "1 bit with a key": saved(Image.new("1", SIZE, 0), "PNG", transparency=0),
    "L with a key": saved(Image.new("L", SIZE, 7), "PNG", transparency=7),
    "RGB with a key": saved(Image.new("RGB", SIZE, (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
    "16 bit with a key": saved(Image.new("I;16", SIZE, 700), "PNG", transparency=700),
    "palette with a key": saved(palette(3), "PNG", transparency=3),
    "palette with alpha": saved(palette(3), "PNG", transparency=b"\xff\xff\xff\x00"),
    "GIF": saved(palette(3), "GIF", transparency=3),
    "WebP": saved(CLEAR, "WEBP", lossless=True),
    "AVIF": saved(CLEAR, "AVIF"),
    "TIFF RGBA": saved(CLEAR, "TIFF"),
    "TIFF LA": saved(CLEAR_GREY, "TIFF"),
    "TIFF La": saved(CLEAR_GREY, "TIFF").replace(STRAIGHT_ALPHA, PREMULTIPLIED_ALPHA),
    "TIFF PA": saved(Image.new("PA", SIZE, (0, 0)), "TIFF"),
}


@pytest.mark.parametrize("content", TRANSPARENT.values(), ids=TRANSPARENT.keys())
def test_what_is_transparent_is_white_in_a_picture_and_black_in_a_mask(content: bytes) -> None:
    assert colours(decode_image(content, "image", 1)) == {WHITE}
    mask = decode_mask(content, "mask", 1)
    assert (mask.mode, mask.getextrema()) == ("L", (0, 0))


def test_a_key_colour_makes_no_other_colour_transparent() -> None:
    content = saved(Image.fromarray(np.array([[0, 700, 65535]], np.uint16)), "PNG", transparency=700)
    assert greys(decode_image(content, "image", 1)) == [0, 255, 255]
    assert list(decode_mask(content, "mask", 1).tobytes()) == [0, 0, 255]


def test_half_transparency_mixes_with_the_ground() -> None:
    content = saved(Image.new("RGBA", SIZE, (255, 0, 0, 128)), "PNG")
    assert colours(decode_image(content, "image", 1)) == {(255, 127, 127)}


def test_an_opaque_picture_with_an_alpha_channel_stays_as_it_is() -> None:
    opaque = PHOTO.copy()
    opaque.putalpha(255)
    assert decode_image(saved(opaque, "PNG"), "image", 1).tobytes() == PHOTO.tobytes()


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_of_several_pictures_in_a_file_the_first_is_taken(file_format: str) -> None:
    first, second = (Image.new("RGB", SIZE, colour) for colour in (BLACK, WHITE))
    image = decode_image(saved(first, file_format, save_all=True, append_images=[second]), "image", 1)
    assert image.size == SIZE
    assert max(max(colour) for colour in colours(image)) < 20


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_picture_stands_upright_whatever_its_exif_says(file_format: str, orientation: int) -> None:
    undo = {
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
    lying = PHOTO.transpose(undo[orientation]) if orientation in undo else PHOTO
    content = saved(lying, file_format, exif=exif, quality=95)
    image = decode_image(content, "image", 1)
    assert image.size == SIZE
    assert difference(image, PHOTO) < 6
    assert decode_mask(content, "mask", 1).size == SIZE


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff broken"])
def test_a_damaged_exif_block_spoils_no_picture(exif: bytes) -> None:
    content = saved(PHOTO, "PNG", exif=exif)
    assert decode_image(content, "image", 1).tobytes() == PHOTO.tobytes()


def profile_with_red_and_blue_swapped(name: str) -> bytes:
    """sRGB, but for its first and third number being the amounts of blue and red; `name` has 4 characters."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12)
    directory = {bytes(profile[at : at + 4]): slice(at + 4, at + 12) for at in entries}
    red, blue = directory[b"rXYZ"], directory[b"bXYZ"]
    profile[red], profile[blue] = profile[blue], profile[red]
    return bytes(profile).replace("sRGB".encode("utf-16-be"), name.encode("utf-16-be"))


def test_an_embedded_colour_profile_is_followed() -> None:
    profile = profile_with_red_and_blue_swapped("sBGR")
    content = saved(Image.new("RGB", SIZE, (250, 100, 10)), "PNG", icc_profile=profile)
    ((red, green, blue),) = colours(decode_image(content, "image", 1))
    assert np.allclose((red, green, blue), (10, 100, 250), atol=5)


def test_a_profile_that_calls_itself_srgb_changes_no_pixel() -> None:
    content = saved(PHOTO, "PNG", icc_profile=profile_with_red_and_blue_swapped("sRGB"))
    assert decode_image(content, "image", 1).tobytes() == PHOTO.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("profile", [b"no profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()])
def test_a_profile_that_does_not_fit_is_ignored(mode: str, profile: bytes) -> None:
    picture = PHOTO.convert(mode)
    content = saved(picture, "TIFF", icc_profile=profile)
    assert decode_image(content, "image", 1).tobytes() == picture.convert("RGB").tobytes()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is of this size, and has no pixel."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(7072, 7072), (50_000_001, 1), (13_000, 13_000), (65_000, 65_000)])
def test_a_picture_over_the_limit_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(InvalidImage, match=r"50 megapixels|more pixels than are taken"):
        decode_image(png_header(width, height), "image", 50)


def test_the_limit_is_told_with_the_size() -> None:
    with pytest.raises(InvalidImage) as caught:
        decode_image(saved(Image.new("L", (2000, 1000)), "PNG"), "mask", 1.5)
    assert str(caught.value) == "mask: the picture is 2000x1000; at most 1.5 megapixels are taken"


def test_a_picture_at_the_limit_is_taken() -> None:
    assert decode_image(saved(Image.new("1", (2000, 1000)), "PNG"), "image", 2).size == (2000, 1000)


def test_a_jpeg_that_goes_over_its_area_again_and_again_is_refused() -> None:
    content = saved(PHOTO, "JPEG", progressive=True)
    last_scan = content[content.rfind(b"\xff\xc4") : -2]
    assert decode_image(content[:-2] + last_scan * 50 + b"\xff\xd9", "image", 1).size == SIZE
    with pytest.raises(InvalidImage, match="more than 100 scans"):
        decode_image(content[:-2] + last_scan * 100 + b"\xff\xd9", "image", 1)


NO_PICTURES = {
    "nothing": b"",
    "a byte": b"\x00",
    "text": b"hello, I am a picture",
    "HTML": b"<html><body>404</body></html>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "a signature alone": saved(PHOTO, "PNG")[:8],
    **{name: saved(PHOTO, name) for name in ("EPS", "PDF", "PPM", "ICO", "TGA", "JPEG2000")},
}


@pytest.mark.parametrize("content", NO_PICTURES.values(), ids=NO_PICTURES.keys())
def test_what_is_no_picture_of_a_known_format_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidImage, match="no picture that can be read; send one of PNG, JPEG, WEBP") as caught:
        decode_image(content, "image", 1)
    assert caught.value.field == "image"


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_truncated_picture_is_refused(file_format: str, kept: float) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    content = saved(noise, file_format)
    with pytest.raises(InvalidImage, match=r"cut short or damaged|no picture"):
        decode_image(content[: int(len(content) * kept)], "image", 1)


@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged_bytes_end_as_a_picture_or_a_refusal_and_nothing_else(file_format: str) -> None:
    chance = random.Random(file_format)
    content = saved(PHOTO.resize((16, 16)), file_format)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(min(len(damaged), 300))] = chance.randrange(256)
        try:
            decode_image(bytes(damaged), "image", 0.1)
            decode_mask(bytes(damaged), "mask", 0.1)
        except InvalidImage:
            refused += 1
    assert refused > 0


def test_a_mask_is_grey_as_painted() -> None:
    painted = Image.fromarray((RAMP * 255).astype(np.uint8))
    assert decode_mask(saved(painted, "PNG"), "mask", 1).tobytes() == painted.tobytes()
    assert decode_mask(saved(ImageOps.invert(painted).convert("RGB"), "PNG"), "mask", 1).mode == "L"
