"""Extracts the one weights file from a download: a safetensors file, or a tar, tar.gz or zip that contains one.

Archives are untrusted: names in them are never used as paths, and sizes are counted while unpacking.
"""

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO, FileIO
from pathlib import Path, PurePosixPath
from typing import IO, Literal, Protocol

from serve.lora.safetensors_header import InvalidLoraFile, display_name

WEIGHTS_SUFFIX = ".safetensors"
ACCEPTED_SUFFIXES = (WEIGHTS_SUFFIX, ".tar", ".tar.gz", ".tgz", ".zip")
"""Suffixes of files that may contain weights."""
CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 2**20
MAX_MEMBERS = 10_000
MAX_ZIP_DIRECTORY_BYTES = 4 * 2**20
"""Limit on the central directory of a zip file, which `zipfile` reads into memory."""
MAX_LISTED_MEMBERS = 5

FileType = Literal["safetensors", "tar", "gzip", "zip"]

_ARCHIVE_MAGIC: tuple[tuple[bytes, FileType], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
)
_UNSUPPORTED_MAGIC = (
    *((bytes((0x80, protocol)), "a pickle, which could execute code") for protocol in range(2, 6)),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"\xef\xbb\xbf<", "a web page"),
    (b"<", "a web page"),
    (b"{", "a JSON document"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
)
_MAX_HEADER_LENGTH = 2**32
"""A safetensors file starts with the length of its header. Text in its place gives a far larger number."""
_CHUNK_BYTES = 64 * 2**10
_ZIP_DIRECTORY_END = struct.Struct("<4s4H2LH")
_ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
)
"""Errors that the standard library raises for truncated and malicious archives."""


@dataclass(frozen=True, slots=True)
class ExtractedFiles:
    weights: Path
    config: bytes | None = None
    """PEFT's `adapter_config.json`, if an archive has it in the folder of the weights."""


def extract_weights(path: Path, folder: Path, max_weights_bytes: int, max_unpacked_bytes: int) -> ExtractedFiles:
    """Extracts the weights from the file at `path` to the empty `folder`. A safetensors file stays where it is.

    Blocking. Raises `InvalidLoraFile` with a message for the caller, and `OSError` if writing to disk fails.
    """
    try:
        file_type = detect_file_type(path)
        if file_type == "gzip":
            with gzip.open(path) as compressed:
                path = _copy(compressed, folder / "decompressed", max_unpacked_bytes)
            file_type = detect_file_type(path)
        if file_type == "tar":
            with _LimitedReadFile(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                return _extract_members(_tar_members(tar), folder, max_weights_bytes)
        if file_type == "zip":
            _check_zip_directory(path)
            with zipfile.ZipFile(path) as archive:
                return _extract_members(_zip_members(archive), folder, max_weights_bytes)
    except _ARCHIVE_ERRORS as error:
        raise InvalidLoraFile("the archive is damaged or truncated") from error
    if file_type != "safetensors":
        raise InvalidLoraFile("it is a nested archive; pack the weights once only")
    return ExtractedFiles(path)


def detect_file_type(path: Path) -> FileType:
    """The type of a file by its content. Raises `InvalidLoraFile` for types that cannot contain weights."""
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _MAX_HEADER_LENGTH:
        return "safetensors"
    archive_type = next((file_type for magic, file_type in _ARCHIVE_MAGIC if head.startswith(magic)), None)
    if archive_type or _is_tar(head):
        return archive_type or "tar"
    description = next((text for magic, text in _UNSUPPORTED_MAGIC if head.lstrip().startswith(magic)), "unknown data")
    raise InvalidLoraFile(
        f"the file is {description if head else 'empty'}; "
        "use a .safetensors file, or a tar, tar.gz or zip archive that contains one"
    )


def _is_tar(head: bytes) -> bool:
    """Whether the block is the header of a tar member, or the end of an empty tar file."""
    if len(head) == tarfile.BLOCKSIZE and not any(head):
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


class _LimitedReadFile(FileIO):
    """Limits single reads, because `tarfile` reads headers of any size into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= 2 * _CHUNK_BYTES:
            raise InvalidLoraFile("the archive has an oversized header")
        return super().read(size) or b""


def _check_zip_directory(path: Path) -> None:
    """Rejects a zip file whose central directory would fill the memory, before `zipfile` reads it."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2**16 - _ZIP_DIRECTORY_END.size))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < _ZIP_DIRECTORY_END.size:
        raise InvalidLoraFile("the archive is damaged or truncated")
    directory_bytes = _ZIP_DIRECTORY_END.unpack_from(tail, end)[5]
    is_zip64 = b"PK\x06\x07" in tail[max(0, end - 20) : end]
    if directory_bytes > MAX_ZIP_DIRECTORY_BYTES or is_zip64:
        raise InvalidLoraFile("the archive contains too many files")


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    is_file: bool
    is_folder: bool
    open: Callable[[], IO[bytes] | None]

    @property
    def path(self) -> PurePosixPath:
        return PurePosixPath(self.name.replace("\\", "/"))


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        yield _Member(info.name, info.isreg(), info.isdir(), partial(tar.extractfile, info))


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        if info.flag_bits & 1:
            raise InvalidLoraFile("the archive is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InvalidLoraFile("the archive uses an unsupported compression; use deflate")
        file_mode = stat.S_IFMT(info.external_attr >> 16)
        is_file = not info.is_dir() and file_mode in (0, stat.S_IFREG)
        yield _Member(info.filename, is_file, info.is_dir(), partial(archive.open, info))


def _extract_members(members: Iterable[_Member], folder: Path, max_weights_bytes: int) -> ExtractedFiles:
    """Extracts the only weights file to `folder`, and reads the adapter configuration next to it."""
    weights: dict[PurePosixPath, Path] = {}
    configs: dict[PurePosixPath, bytes] = {}
    other_names: list[str] = []
    for number, member in enumerate(members, start=1):
        if number > MAX_MEMBERS:
            raise InvalidLoraFile(f"the archive contains more than {MAX_MEMBERS} files")
        _check_member(member)
        if not member.is_file or _is_macos_metadata(member.path):
            continue
        if member.path.suffix.lower() == WEIGHTS_SUFFIX:
            weights[member.path] = _extract(member, folder / f"{len(weights)}{WEIGHTS_SUFFIX}", max_weights_bytes)
            if len(weights) > 1:
                names = " and ".join(display_name(str(path)) for path in weights)
                raise InvalidLoraFile(f"the archive contains several weights files, {names}; link to one of them")
        elif member.path.name == CONFIG_NAME:
            configs[member.path.parent] = _extract(member, folder / CONFIG_NAME, MAX_CONFIG_BYTES).read_bytes()
        else:
            other_names.append(member.name)
    if not weights:
        raise InvalidLoraFile(_missing_weights(other_names))
    ((member_path, extracted),) = weights.items()
    return ExtractedFiles(extracted, configs.get(member_path.parent))


def _check_member(member: _Member) -> None:
    if not member.is_file and not member.is_folder:
        raise InvalidLoraFile(f"the archive contains a link or device, {display_name(member.name)}; use files only")
    if member.path.is_absolute() or ".." in member.path.parts:
        raise InvalidLoraFile(f"the archive contains a path that leads outside it, {display_name(member.name)}")


def _is_macos_metadata(path: PurePosixPath) -> bool:
    """macOS adds a file with the same suffix for the metadata of each packed file."""
    return path.name.startswith("._") or "__MACOSX" in path.parts


def _missing_weights(other_names: list[str]) -> str:
    if any(PurePosixPath(name).name == "data.pkl" for name in other_names):
        return f"it is a pickle, which could execute code; use a {WEIGHTS_SUFFIX} file"
    if not other_names:
        return f"the archive is empty; it must contain one {WEIGHTS_SUFFIX} file"
    listed = ", ".join(display_name(name) for name in other_names[:MAX_LISTED_MEMBERS])
    more = " and more" if len(other_names) > MAX_LISTED_MEMBERS else ""
    return f"the archive contains no {WEIGHTS_SUFFIX} file, only {listed}{more}"


def _extract(member: _Member, path: Path, max_bytes: int) -> Path:
    with member.open() or BytesIO() as source:
        return _copy(source, path, max_bytes)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; empty at the end."""


def _copy(source: _Readable, path: Path, max_bytes: int) -> Path:
    """Copies `source` to a file of at most `max_bytes`. Raises `InvalidLoraFile` if it is larger."""
    written_bytes = 0
    with path.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            written_bytes += len(chunk)
            if written_bytes > max_bytes:
                raise InvalidLoraFile(f"it unpacks to more than {max_bytes} bytes")
            file.write(chunk)
    return path
