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
XMP, EXIF_TEXT = b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"
"""Starts of text chunks that can contain the orientation."""


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
        elif not chunk.intact or chunk.kind in kinds:
            continue
        elif chunk.kind == b"iCCP":
            icc_profile = _unpack(bytes(chunk.data), MAX_PROFILE_BYTES)
        elif _contains_orientation(chunk):
            kept.append(chunk.file_part)
        else:
            continue
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


def _contains_orientation(chunk: _Chunk) -> bool:
    """Whether this is EXIF data, or a text with orientation that Pillow can unpack within its limits."""
    if chunk.kind == b"eXIf":
        return True
    start = bytes(chunk.data[:32])
    match chunk.kind:
        case b"iTXt":
            is_packed = start[len(XMP) : len(XMP) + 1] != b"\0"
            return start.startswith(XMP) and not is_packed and len(chunk.data) <= MAX_TEXT_BYTES
        case b"tEXt":
            return start.startswith(EXIF_TEXT) and len(chunk.data) <= MAX_TEXT_BYTES
        case b"zTXt":
            return start.startswith(EXIF_TEXT) and _unpack(bytes(chunk.data), MAX_TEXT_BYTES) is not None
        case _:
            return False


def _unpack(data: bytes, max_bytes: int) -> bytes | None:
    """The packed part of an iCCP or zTXt chunk: name, zero byte, method (0 is deflate), packed bytes."""
    _, _, packed = data.partition(b"\0")
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed[1:], max_bytes)
    except zlib.error:
        return None
    return unpacked if packed[:1] == b"\0" and unpacker.eof else None
