"""Opening image files: sizes in the header, empty files, and alpha channels that are empty."""

import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve.errors import InvalidImage
from serve.media.image_codec import decode_image
from serve.media.masks import decode_mask
from tests.unit.media.png_files import without_pixels

pytestmark = pytest.mark.filterwarnings("error", "ignore::PIL.Image.DecompressionBombWarning")

PIXELS = np.random.default_rng(1).integers(1, 256, (8, 16, 3), np.uint8)


def bmp_with_alpha(alpha: np.ndarray) -> bytes:
    """A BMP with the header that clipboards write (version 5): 32 bits, of which 8 are alpha."""
    height, width = alpha.shape
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII4I", 124, width, height, 1, 32, 3, 4 * alpha.size, 2835, 2835, 0, 0, *masks)
    body = np.dstack([PIXELS[..., ::-1], alpha])[::-1].astype(np.uint8).tobytes()
    return struct.pack("<2sIHHI", b"BM", 138 + len(body), 0, 0, 138) + info.ljust(124, b"\0") + body


def test_alpha_of_a_bmp_that_is_0_everywhere_is_no_alpha() -> None:
    content = bmp_with_alpha(np.zeros((8, 16)))
    assert np.array_equal(np.asarray(decode_image(content, "image", 1)), PIXELS)
    assert decode_mask(content, "mask", 1).image.tobytes() == Image.fromarray(PIXELS).convert("L").tobytes()


def test_other_alpha_of_a_bmp_is_transparency() -> None:
    alpha = np.zeros((8, 16))
    alpha[:, :8] = 255
    pixels = np.asarray(decode_image(bmp_with_alpha(alpha), "image", 1))
    assert np.array_equal(pixels[:, :8], PIXELS[:, :8])
    assert (pixels[:, 8:] == 255).all()


@pytest.mark.parametrize("decode", [decode_image, decode_mask])
def test_empty_file_is_rejected_as_empty(decode: object) -> None:
    with pytest.raises(InvalidImage, match="empty") as caught:
        decode(b"", "mask", 1)  # type: ignore[operator]
    assert caught.value.field == "mask"


def jpeg_with_size(width: int, height: int) -> bytes:
    file = BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG")
    content = bytearray(file.getvalue())
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("build", [without_pixels, jpeg_with_size], ids=["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("width", "height", "megapixels"), [(7072, 7072, "50.01"), (13_000, 13_000, "169"), (30_000, 20_000, "600")]
)
def test_oversized_image_is_rejected_by_its_header(build: object, width: int, height: int, megapixels: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        decode_image(build(width, height), "image", 50)  # type: ignore[operator]
    assert caught.value.field == "image"
    assert f"{width}x{height}" in caught.value.why
    assert f"{megapixels} megapixels" in caught.value.why
    assert "50 are taken" in caught.value.why


@pytest.mark.parametrize("build", [without_pixels, jpeg_with_size], ids=["PNG", "JPEG"])
def test_size_is_read_in_a_process_whose_pillow_has_not_loaded_all_formats(build: object, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(build(30_000, 20_000))  # type: ignore[operator]
    lines = (
        "import pathlib, sys",
        "from serve.errors import InvalidImage",
        "from serve.media.image_codec import decode_image",
        "try:",
        "    decode_image(pathlib.Path(sys.argv[1]).read_bytes(), 'image', 50)",
        "except InvalidImage as error:",
        "    print(error.why)",
    )
    command = [sys.executable, "-c", "\n".join(lines), str(path)]
    assert "600 megapixels" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_image_at_size_limit_is_decoded() -> None:
    file = BytesIO()
    Image.new("1", (2000, 1000)).save(file, "PNG")
    assert decode_image(file.getvalue(), "image", 2).size == (2000, 1000)
    with pytest.raises(InvalidImage, match=r"1\.5"):
        decode_image(file.getvalue(), "image", 1.5)


def test_damaged_header_is_not_called_another_format() -> None:
    with pytest.raises(InvalidImage, match="truncated"):
        decode_image(jpeg_with_size(8, 8)[:30], "image", 1)
