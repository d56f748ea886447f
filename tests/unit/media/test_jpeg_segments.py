"""Scans and segments of JPEG files are counted up to the end of the first image."""

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve.errors import InvalidImage
from serve.media.image_codec import decode_image
from serve.media.jpeg_segments import MAX_SEGMENTS, check_jpeg_segments

RAMP = np.linspace(0, 255, 96 * 64).reshape(64, 96).astype(np.uint8)
PHOTO = Image.fromarray(np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]]))
NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8))
SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
END = b"\xff\xd9"


def jpeg(image: Image.Image = PHOTO, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def segment(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def with_segments(content: bytes, *segments: bytes) -> bytes:
    return content[:2] + b"".join(segments) + content[2:]


def with_scans(count: int) -> bytes:
    """A progressive JPEG of a small image whose last scan is repeated."""
    content = jpeg(progressive=True)
    last_scan = content[content.rfind(b"\xff\xc4") : -2]
    return content[:-2] + last_scan * count + END


VIDEO = b"\0\0\0\x18ftypmp42" + (b"mdat" + SCAN) * 1000
NOT_COUNTED = {
    "video of a motion photo": jpeg() + VIDEO,
    "second JPEG": jpeg() + with_scans(200),
    "thumbnail in EXIF": with_segments(jpeg(), segment(0xE1, b"Thumb\0" + SCAN * 1000)),
    "thumbnail in Photoshop data": with_segments(jpeg(), segment(0xED, b"thumb" + with_scans(200)[:60_000])),
    "comment": with_segments(jpeg(), segment(0xFE, SCAN * 1000)),
    "stuffed bytes and restart markers": jpeg(NOISE, restart_marker_blocks=1, quality=100),
    "fill bytes before markers": with_segments(jpeg(), b"\xff" * 20 + segment(0xFE, b"a")),
}


@pytest.mark.parametrize("content", NOT_COUNTED.values(), ids=NOT_COUNTED.keys())
def test_scans_outside_the_image_are_not_counted(content: bytes) -> None:
    assert decode_image(content, "image", 1).size == PHOTO.size


def test_motion_photo_has_the_pixels_of_the_photo() -> None:
    assert decode_image(jpeg() + VIDEO, "image", 1).tobytes() == decode_image(jpeg(), "image", 1).tobytes()


def test_jpeg_with_over_100_scans_is_rejected() -> None:
    assert decode_image(with_scans(50), "image", 1).size == PHOTO.size
    with pytest.raises(InvalidImage, match="100 scans") as caught:
        decode_image(with_scans(100), "image", 1)
    assert caught.value.field == "image"


HIDDEN = {
    "behind fill bytes": with_scans(0)[:-2] + (b"\xff\xff\xff" + with_scans(1)[len(with_scans(0)) - 2 : -2]) * 100,
    "behind a reserved marker": jpeg(restart_marker_blocks=1)[:-2] + b"\xff\x05\xff\xff" + SCAN * 200 + END,
    "behind a marker without length": jpeg()[:-2] + b"\xff\x01\xff\xff" + SCAN * 200 + END,
    "behind a short segment": jpeg()[:-2] + b"\xff\xe0\x00\x00" + SCAN * 200 + END,
    "behind a restart marker": jpeg()[:-2] + b"\xff\xd3" + SCAN * 200 + END,
    "in an image that is not complete": jpeg()[:-2] + SCAN * 200,
}


@pytest.mark.parametrize("content", HIDDEN.values(), ids=HIDDEN.keys())
def test_no_scan_can_be_hidden(content: bytes) -> None:
    with pytest.raises(InvalidImage, match="100 scans"):
        check_jpeg_segments(content, "image")


def test_number_of_segments_is_limited() -> None:
    comment = segment(0xFE, b"")
    check_jpeg_segments(with_segments(jpeg(), *[comment] * (MAX_SEGMENTS - 100)), "image")
    with pytest.raises(InvalidImage, match=str(MAX_SEGMENTS)):
        check_jpeg_segments(with_segments(jpeg(), *[comment] * MAX_SEGMENTS), "image")
