"""PNG files built chunk by chunk."""

import struct
import zlib

from serve.media.png_chunks import SIGNATURE

IEND = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def chunk(kind: bytes, data: bytes = b"", checksum: int | None = None) -> bytes:
    """A chunk, with its own checksum or with a wrong one."""
    right = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", right if checksum is None else checksum)


def header(width: int, height: int, depth: int = 8, colour_type: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))


def without_pixels(width: int, height: int) -> bytes:
    """A file whose header has this size, with pixel data that is empty."""
    return SIGNATURE + header(width, height) + chunk(b"IDAT", zlib.compress(b"")) + IEND


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """`png` with more chunks after its header."""
    after_header = len(SIGNATURE) + 25
    return png[:after_header] + b"".join(chunks) + png[after_header:]
