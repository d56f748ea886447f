"""Removes from PNG files the chunks that decide no pixel, which Pillow would read, check and unpack."""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from serve.errors import InvalidImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 100_000
"""Writers split pixel data into chunks of 8 KiB or more; each chunk costs time, however small it is."""
MAX_PROFILE_BYTES = 2**24
"""For an unpacked colour profile: the most that a JPEG can hold, and many times the size of usual ones."""
MAX_TEXT_BYTES = 2**20
"""For an unpacked text: Pillow refuses a file with a longer one."""
METADATA = {
    b"iCCP": b"",
    b"eXIf": b"",
    b"iTXt": b"XML:com.adobe.xmp\0\0",
    b"tEXt": b"Raw profile type exif\0",
    b"zTXt": b"Raw profile type exif\0",
}
"""The ancillary chunks with a colour profile or an orientation, and how their data start.

Of each kind, only the first one is read, so that many small ones cannot cost much time. XMP that is packed is not read.
"""


class Png(NamedTuple):
    content: bytes
    """The file with only the chunks that decide pixels and orientation."""
    icc_profile: bytes | None
    """The embedded colour profile, unpacked; None if there is none, or if it is damaged or too large."""


class _Chunk(NamedTuple):
    kind: bytes
    data: memoryview
    file_part: memoryview
    """The chunk with its length, kind and checksum."""
    intact: bool
    """Whether the checksum is right."""


def is_png(content: bytes) -> bool:
    return content.startswith(SIGNATURE)


def strip_png(content: bytes, field: str) -> Png:
    """Removes ancillary chunks, and everything after the end of the image.

    Only a chunk that decides pixels may be a reason to refuse the file: raises `InvalidImage` for `field` if one is
    damaged or cut off, if there are none, or if there are more than `MAX_CHUNKS` chunks.
    """
    kept: list[bytes | memoryview] = [SIGNATURE]
    kinds: set[bytes] = set()
    icc_profile: bytes | None = None
    for chunk in _read_chunks(content, field):
        if _decides_pixels(chunk.kind):
            if not chunk.intact:
                raise InvalidImage(field, f"the PNG is damaged: its {chunk.kind.decode()} chunk has a wrong checksum")
            kept.append(chunk.file_part)
        elif not chunk.intact or chunk.kind in kinds or not _is_metadata(chunk):
            continue
        elif chunk.kind == b"iCCP":
            icc_profile = _unpack(bytes(chunk.data), MAX_PROFILE_BYTES)
        elif _is_readable(chunk):
            kept.append(chunk.file_part)
        kinds.add(chunk.kind)
    if b"IDAT" not in kinds:
        raise InvalidImage(field, "the PNG is truncated or damaged: it contains no pixels")
    return Png(b"".join(kept), icc_profile)


def _read_chunks(content: bytes, field: str) -> Iterator[_Chunk]:
    """The chunks up to IEND, or up to bytes that are no chunk."""
    view = memoryview(content)
    start = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        length = int.from_bytes(view[start : start + 4], "big")
        kind, end = bytes(view[start + 4 : start + 8]), start + 12 + length
        if len(kind) < 4 or not kind.isalpha():
            return
        if end > len(content):
            if _decides_pixels(kind):
                raise InvalidImage(field, f"the PNG is truncated: {end - len(content)} bytes are missing")
            return
        data = view[start + 8 : end - 4]
        checksum = zlib.crc32(data, zlib.crc32(kind))
        yield _Chunk(kind, data, view[start:end], checksum == int.from_bytes(view[end - 4 : end], "big"))
        if kind == b"IEND":
            return
        start = end
    raise InvalidImage(field, f"the PNG has more than {MAX_CHUNKS} chunks; save it again")


def _decides_pixels(kind: bytes) -> bool:
    """Critical chunks start with a capital letter; transparency is the only ancillary chunk that changes pixels here.

    The chunks of an animation are not needed, since its first frame is also a still image.
    """
    return kind[:1].isupper() or kind == b"tRNS"


def _is_metadata(chunk: _Chunk) -> bool:
    start = METADATA.get(chunk.kind)
    return start is not None and chunk.data[: len(start)] == start


def _is_readable(chunk: _Chunk) -> bool:
    """Whether Pillow can read this chunk of `METADATA` within its limits."""
    if chunk.kind == b"zTXt":
        return _unpack(bytes(chunk.data), MAX_TEXT_BYTES) is not None
    return len(chunk.data) <= MAX_TEXT_BYTES or chunk.kind == b"eXIf"


def _unpack(data: bytes, max_bytes: int) -> bytes | None:
    """The packed part of an iCCP or zTXt chunk: name, zero byte, method (0 is deflate), packed bytes."""
    _, _, packed = data.partition(b"\0")
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed[1:], max_bytes)
    except zlib.error:
        return None
    return unpacked if packed[:1] == b"\0" and unpacker.eof else None
