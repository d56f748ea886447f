"""Builds tar and zip files."""

import io
import struct
import tarfile
import zipfile
from unittest import mock

Member = tuple[str, bytes]
"""Name and content."""


def tar_of(*members: Member | tarfile.TarInfo, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def zip_of(*members: Member | tuple[zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def zip64_of(*members: Member) -> bytes:
    """A zip file in which all sizes and offsets are in ZIP64 records."""
    with mock.patch.multiple(zipfile, ZIP64_LIMIT=-1, ZIP_FILECOUNT_LIMIT=0):
        return zip_of(*members)


def zip64_with_small_fields(*members: Member) -> bytes:
    """A zip file with ZIP64 records, whose sizes are in the fields of the plain records too, as torch writes them."""
    content = zip_of(*members)
    end = content.rfind(b"PK\5\6")
    count, directory_bytes, offset = struct.unpack_from("<10xH2L", content, end)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, directory_bytes, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    return content[:end] + record + locator + content[end:]
