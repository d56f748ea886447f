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

from serve.lora.safetensors_header import InvalidLoraFile, shown

FileType = Literal["safetensors", "tar", "gzip", "zip"]

_ARCHIVES: tuple[tuple[bytes, FileType], ...] = ((b"\x1f\x8b", "gzip"), (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip"))
_STRANGERS = (
    *((bytes((0x80, protocol)), "a pickle, which could run code here") for protocol in range(2, 6)),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a pointer to a file in Git LFS, not the file"),
    (b"\xef\xbb\xbf<", "a web page"),
    (b"<", "a web page"),
    (b"{", "a text in JSON"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
)
_LARGEST_LENGTH = 2**32
"""A safetensors file begins with the length of its header: any text there would be a far larger number."""


def detect_file_type(path: Path) -> FileType:
    """The kind of a file that may hold weights. Raises `InvalidLoraFile` for anything else, naming what it is."""
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _LARGEST_LENGTH:
        return "safetensors"
    kind = next((kind for magic, kind in _ARCHIVES if head.startswith(magic)), None)
    if kind or _is_tar(head):
        return kind or "tar"
    found = next((what for magic, what in _STRANGERS if head.lstrip().startswith(magic)), "of another kind")
    raise InvalidLoraFile(
        f"the file is {found if head else 'empty'}; give a .safetensors file, or a tar, tar.gz or zip that holds one"
    )


def _is_tar(head: bytes) -> bool:
    """Whether the block is the header of a member, or the end of an archive without any."""
    if len(head) == tarfile.BLOCKSIZE and not any(head):
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


WEIGHTS_SUFFIX = ".safetensors"
CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 2**20
MAX_MEMBERS = 10_000
MAX_DIRECTORY_BYTES = 4 * 2**20
"""Of a zip's list of its members, which is read as a whole."""
NAMED_MEMBERS = 5
_CHUNK_BYTES = 64 * 2**10
_END_OF_ZIP = struct.Struct("<4s4H2LH")
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, struct.error, EOFError, RuntimeError)
"""How the libraries answer archives that are cut off, or made to confuse them."""


@dataclass(frozen=True, slots=True)
class ExtractedFiles:
    """The files that matter of what was downloaded."""

    weights: Path
    config: bytes | None = None
    """PEFT's configuration, where an archive has it beside the weights."""


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    is_file: bool
    is_folder: bool
    open: Callable[[], IO[bytes] | None]

    @property
    def path(self) -> PurePosixPath:
        return PurePosixPath(self.name.replace("\\", "/"))


def extract_weights(path: Path, folder: Path, max_weights_bytes: int, max_unpacked_bytes: int) -> ExtractedFiles:
    """The weights in the file at `path`, which is that file itself if it is no archive.

    Unpacks into the empty `folder`. Blocking. Raises `InvalidLoraFile` with a reason for users, and `OSError` if the
    disk cannot be written.
    """
    try:
        kind = detect_file_type(path)
        if kind == "gzip":
            with gzip.open(path) as packed:
                path = _copied(packed, folder / "inflated", max_unpacked_bytes)
            kind = detect_file_type(path)
        if kind == "tar":
            with _SparingFile(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                return _unpacked(_members_of_tar(tar), folder, max_weights_bytes)
        if kind == "zip":
            _check_directory(path)
            with zipfile.ZipFile(path) as archive:
                return _unpacked(_members_of_zip(archive), folder, max_weights_bytes)
    except _DAMAGE as error:
        raise InvalidLoraFile("the archive is damaged or cut off") from error
    if kind != "safetensors":
        raise InvalidLoraFile("it is an archive in an archive")
    return ExtractedFiles(path)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


class _SparingFile(FileIO):
    """A file for `tarfile`, which otherwise reads headers of any size into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= 2 * _CHUNK_BYTES:
            raise InvalidLoraFile("the archive has a header of unreasonable size")
        return super().read(size) or b""


def _members_of_tar(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        yield _Member(info.name, info.isreg(), info.isdir(), partial(tar.extractfile, info))


def _members_of_zip(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        if info.flag_bits & 1:
            raise InvalidLoraFile("the archive is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InvalidLoraFile("the archive is compressed in an unusual way; pack it with deflate")
        kind = stat.S_IFMT(info.external_attr >> 16)
        is_file = not info.is_dir() and kind in (0, stat.S_IFREG)
        yield _Member(info.filename, is_file, info.is_dir(), partial(archive.open, info))


def _unpacked(members: Iterable[_Member], folder: Path, max_weights_bytes: int) -> ExtractedFiles:
    """The one weights file among `members`, written to `folder`, and the configuration in the same place."""
    weights: dict[PurePosixPath, Path] = {}
    configs: dict[PurePosixPath, bytes] = {}
    others: list[str] = []
    for number, member in enumerate(members, start=1):
        if number > MAX_MEMBERS:
            raise InvalidLoraFile(f"the archive holds more than {MAX_MEMBERS} files")
        _check(member)
        if not member.is_file or _is_of_macos(member.path):
            continue
        if member.path.suffix.lower() == WEIGHTS_SUFFIX:
            weights[member.path] = _extracted(member, folder / f"{len(weights)}{WEIGHTS_SUFFIX}", max_weights_bytes)
            if len(weights) > 1:
                names = " and ".join(shown(str(path)) for path in weights)
                raise InvalidLoraFile(f"the archive holds two weights files, {names}; give the link of one")
        elif member.path.name == CONFIG_NAME:
            kept = _extracted(member, folder / CONFIG_NAME, MAX_CONFIG_BYTES)
            configs[member.path.parent] = kept.read_bytes()
        else:
            others.append(member.name)
    if not weights:
        raise InvalidLoraFile(_without_weights(others))
    ((path, file),) = weights.items()
    return ExtractedFiles(file, configs.get(path.parent))


def _check(member: _Member) -> None:
    if not member.is_file and not member.is_folder:
        raise InvalidLoraFile(
            f"the archive holds {shown(member.name)}, which is a link or a device; only files are taken"
        )
    if member.path.is_absolute() or ".." in member.path.parts:
        raise InvalidLoraFile(f"the archive holds {shown(member.name)}, a path that leads out of it")


def _is_of_macos(path: PurePosixPath) -> bool:
    """Finder packs a shadow beside every file, under the same ending."""
    return path.name.startswith("._") or "__MACOSX" in path.parts


def _without_weights(others: list[str]) -> str:
    if any(PurePosixPath(name).name == "data.pkl" for name in others):
        return "it is a pickle, which could run code here; only safetensors files are taken"
    if not others:
        return f"the archive is empty: it should hold one {WEIGHTS_SUFFIX} file"
    names = ", ".join(shown(name) for name in others[:NAMED_MEMBERS])
    return f"the archive holds no {WEIGHTS_SUFFIX} file, but {names}{' and more' * (len(others) > NAMED_MEMBERS)}"


def _extracted(member: _Member, into: Path, max_bytes: int) -> Path:
    with member.open() or BytesIO() as source:
        return _copied(source, into, max_bytes)


def _copied(source: _Readable, into: Path, max_bytes: int) -> Path:
    """What `source` holds, as a file of at most `max_bytes`."""
    written = 0
    with into.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > max_bytes:
                raise InvalidLoraFile(f"it unpacks to more than {max_bytes} bytes")
            file.write(chunk)
    return into


def _check_directory(path: Path) -> None:
    """Refuses a zip whose list of members would fill the memory, before the library reads it."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2**16 - _END_OF_ZIP.size))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END_OF_ZIP.size:
        raise InvalidLoraFile("the archive is damaged or cut off")
    directory_bytes = _END_OF_ZIP.unpack_from(tail, at)[5]
    if directory_bytes > MAX_DIRECTORY_BYTES or b"PK\x06\x07" in tail[max(0, at - 20) : at]:
        raise InvalidLoraFile("the archive holds too many files")
