"""Limits the segments of JPEG files, each of which costs time or memory out of proportion to its size."""

import re

from serve.errors import InvalidImage

SIGNATURE = b"\xff\xd8\xff"
MAX_SCANS = 100
"""A progressive JPEG has about ten scans. Each costs time for the full area, and a small file can have millions."""
MAX_SEGMENTS = 5000
"""Large metadata is split into segments of 64 KiB, so a file of 32 MiB needs 500 for it."""

MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker between segments or after pixel data.

Zero stands for a byte 255 of the data, 255 before a marker is a fill byte, and D0 to D7 separate parts of a scan.
"""
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
FIRST_WITH_LENGTH, WITHOUT_LENGTH = 0xC0, {0xD8, 0xD9}
"""Lower markers are reserved: a decoder stops at them, or skips them as it skips damaged data."""


def is_jpeg(content: bytes) -> bool:
    return content.startswith(SIGNATURE)


def check_jpeg_segments(content: bytes, field: str) -> None:
    """Raises `InvalidImage` for `field` if the first image of a JPEG file has too many scans or segments.

    Thumbnails in metadata, and what follows the image, such as the video of a motion photo, are not counted. The
    segments are found as libjpeg finds them, so that it decodes no scan that is not counted here.
    """
    scans = segments = 0
    marker = MARKER.search(content, 2)
    while marker is not None and (kind := content[marker.end() - 1]) != END_OF_IMAGE:
        segments += 1
        scans += kind == START_OF_SCAN
        if scans > MAX_SCANS:
            raise InvalidImage(field, f"the JPEG has more than {MAX_SCANS} scans; save it as a baseline JPEG")
        if segments > MAX_SEGMENTS:
            raise InvalidImage(field, f"the JPEG has more than {MAX_SEGMENTS} segments; save it without metadata")
        end = marker.end()
        if kind >= FIRST_WITH_LENGTH and kind not in WITHOUT_LENGTH:
            end += max(2, int.from_bytes(content[end : end + 2], "big"))
        marker = MARKER.search(content, end)
