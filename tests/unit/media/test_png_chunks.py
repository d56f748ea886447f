"""Ancillary chunks of PNG files: they do not decide whether a file is taken, and their memory is bounded."""

import struct
import tracemalloc
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from serve.errors import InvalidImage
from serve.media import png_chunks
from serve.media.image_codec import decode_image
from serve.media.png_chunks import MAX_PROFILE_BYTES, SIGNATURE, strip_png
from tests.unit.media.png_files import IEND, chunk, header, with_chunks

# Pillow warns about damaged files while it decodes them.
pytestmark = pytest.mark.filterwarnings("error", "ignore::UserWarning:PIL")

PIXELS = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
MEGABYTES = 2**20
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def plain() -> bytes:
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


def packed(name: bytes, content: bytes) -> bytes:
    """The data of an iCCP or zTXt chunk."""
    return name + b"\0\0" + zlib.compress(content, 9)


def decode(content: bytes) -> np.ndarray:
    return np.asarray(decode_image(content, "image", 1))


ANCILLARY = {
    "large profile": chunk(b"iCCP", packed(b"big", SRGB + bytes(1_400_000))),
    "profile with a wrong checksum": chunk(b"iCCP", packed(b"s", SRGB), checksum=1),
    "profile that is no zlib stream": chunk(b"iCCP", b"s\0\0garbage"),
    "profile without a method": chunk(b"iCCP", b"s"),
    "profile with an unknown method": chunk(b"iCCP", b"s\0\7garbage"),
    "large zTXt": chunk(b"zTXt", packed(b"workflow", b"node " * 300_000)),
    "large packed iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"node " * 300_000)),
    "large packed XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"node " * 300_000)),
    "large XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"node " * 300_000),
    "zTXt with an unknown method": chunk(b"zTXt", b"workflow\0\7garbage"),
    "large EXIF text": chunk(b"zTXt", packed(b"Raw profile type exif", b"0" * 1_500_000)),
    "text with a wrong checksum": chunk(b"tEXt", b"a\0b", checksum=1),
    "short gamma": chunk(b"gAMA", b"\0"),
    "short resolution": chunk(b"pHYs", b"\0"),
    "EXIF with a wrong checksum": chunk(b"eXIf", b"MM\0*", checksum=1),
    "EXIF that is damaged": chunk(b"eXIf", b"garbage"),
    "animation without frames": chunk(b"acTL", b"\0"),
    "frame out of order": chunk(b"fcTL", struct.pack(">5IHHBB", 9, 48, 32, 0, 0, 1, 1, 0, 0)),
    "unknown": chunk(b"vpAg", bytes(100)),
}


@pytest.mark.parametrize("ancillary", ANCILLARY.values(), ids=ANCILLARY.keys())
def test_ancillary_chunk_changes_no_pixel(ancillary: bytes) -> None:
    assert np.array_equal(decode(with_chunks(plain(), ancillary)), PIXELS)


@pytest.mark.parametrize("ancillary", ANCILLARY.values(), ids=ANCILLARY.keys())
def test_ancillary_chunk_after_the_pixels_changes_no_pixel(ancillary: bytes) -> None:
    without_end = plain()[: -len(IEND)]
    assert np.array_equal(decode(without_end + ancillary + IEND), PIXELS)
    assert np.array_equal(decode(without_end + ancillary[:-1]), PIXELS)


def test_bytes_after_the_end_are_ignored() -> None:
    assert np.array_equal(decode(plain() + bytes(100)), PIXELS)


def test_memory_for_packed_chunks_is_bounded() -> None:
    bomb = zlib.compress(bytes(256 * MEGABYTES), 9)
    kinds = {b"iCCP": b"a", b"zTXt": b"Raw profile type exif", b"iTXt": b"XML:com.adobe.xmp\0\1"}
    bombs = [chunk(kind, name + b"\0\0" + bomb) for kind, name in kinds.items()]
    content = with_chunks(plain(), *bombs, *bombs)
    tracemalloc.start()
    try:
        assert strip_png(content, "image").icc_profile is None
        assert tracemalloc.get_traced_memory()[1] < 2 * MAX_PROFILE_BYTES + 4 * MEGABYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "name"), [(b"iCCP", b"a"), (b"zTXt", b"Raw profile type exif")])
def test_only_the_first_packed_chunk_of_a_kind_is_unpacked(
    kind: bytes, name: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked: list[bytes] = []

    def unpack(data: bytes, max_bytes: int) -> bytes | None:
        unpacked.append(data)
        return None

    monkeypatch.setattr(png_chunks, "_unpack", unpack)
    strip_png(with_chunks(plain(), *[chunk(kind, packed(name, b"x"))] * 5), "image")
    assert len(unpacked) == 1


def test_profile_of_several_megabytes_is_read() -> None:
    profile = SRGB + bytes(3_000_000)
    assert strip_png(with_chunks(plain(), chunk(b"iCCP", packed(b"a", profile))), "image").icc_profile == profile


def test_profile_over_the_limit_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    content = with_chunks(plain(), chunk(b"iCCP", packed(b"a", SRGB)))
    monkeypatch.setattr(png_chunks, "MAX_PROFILE_BYTES", len(SRGB) - 1)
    assert strip_png(content, "image").icc_profile is None


ROTATED = b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
"""EXIF with orientation 6."""
WITH_ORIENTATION = {
    "eXIf": chunk(b"eXIf", ROTATED),
    "XMP": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
    "tEXt": chunk(
        b"tEXt", b"Raw profile type exif\0\nexif\n%8d\n" % (len(ROTATED) + 6) + (b"Exif\0\0" + ROTATED).hex().encode()
    ),
    "zTXt": chunk(
        b"zTXt",
        packed(
            b"Raw profile type exif", b"\nexif\n%8d\n" % (len(ROTATED) + 6) + (b"Exif\0\0" + ROTATED).hex().encode()
        ),
    ),
}


@pytest.mark.parametrize("orientation", WITH_ORIENTATION.values(), ids=WITH_ORIENTATION.keys())
def test_orientation_is_kept(orientation: bytes) -> None:
    assert np.array_equal(decode(with_chunks(plain(), orientation)), np.rot90(PIXELS, -1))


def test_transparency_and_palette_are_kept() -> None:
    row = zlib.compress(b"\0\0\1")
    png = (
        SIGNATURE + header(2, 1, colour_type=3) + chunk(b"PLTE", bytes((9, 8, 7, 1, 2, 3))) + chunk(b"tRNS", b"\0\xff")
    )
    assert decode(png + chunk(b"IDAT", row) + IEND).tolist() == [[[255, 255, 255], [1, 2, 3]]]


def test_first_frame_of_an_animation_is_its_still_image() -> None:
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", save_all=True, append_images=[Image.fromarray(255 - PIXELS)])
    assert np.array_equal(decode(file.getvalue()), PIXELS)


DAMAGED = {
    "IHDR": plain()[:16] + b"\1" + plain()[17:],
    "PLTE": with_chunks(plain(), chunk(b"PLTE", bytes(6), checksum=1)),
    "tRNS": with_chunks(plain(), chunk(b"tRNS", bytes(6), checksum=1)),
    "IDAT": plain().replace(plain()[-16:-12], b"\1\2\3\4"),
    "missing": plain()[:100],
    "no pixels": SIGNATURE + header(48, 32) + IEND,
    "PNG": SIGNATURE,
}


@pytest.mark.parametrize("word", DAMAGED)
def test_damaged_chunk_that_decides_pixels_is_named(word: str) -> None:
    with pytest.raises(InvalidImage, match=word) as caught:
        decode(DAMAGED[word])
    assert caught.value.field == "image"
    assert "PNG" in caught.value.why


def test_number_of_chunks_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    content = with_chunks(plain(), *[chunk(b"vpAg")] * 10)
    monkeypatch.setattr(png_chunks, "MAX_CHUNKS", 13)
    assert np.array_equal(decode(content), PIXELS)
    monkeypatch.setattr(png_chunks, "MAX_CHUNKS", 12)
    with pytest.raises(InvalidImage, match="12 chunks"):
        decode(content)
