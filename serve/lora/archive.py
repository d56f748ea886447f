"""Extracts the weights file from a download: a safetensors file, or a tar, tar.gz or zip that contains one or more.

Archives are untrusted: names in them are never used as paths, and sizes are counted while unpacking.
"""

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import SEEK_SET, BytesIO, FileIO
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from serve.lora.file_type import PICKLE_ERROR, REJECTED_SUFFIXES, WEIGHTS_SUFFIX, FileType, detect_file_type
from serve.lora.safetensors_header import InvalidLoraFile, display_name, display_names

CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 2**20
MAX_MEMBERS = 10_000
MAX_ZIP_DIRECTORY_BYTES = 4 * 2**20
"""Limit on the central directory of a zip file, which `zipfile` reads into memory at once."""
MAX_TAR_HEADER_BYTES = 128 * 2**10
"""Limit on a long name or a pax header, which `tarfile` reads into memory at once."""
_CHUNK_BYTES = 64 * 2**10
_ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    UnicodeDecodeError,
)
"""Errors that the standard library raises for truncated and malicious archives."""


@dataclass(frozen=True, slots=True)
class ExtractedFiles:
    weights: Path
    config: bytes | None = None
    """PEFT's `adapter_config.json`, if an archive has it in the folder of the weights."""


def extract_weights(
    path: Path, folder: Path, max_weights_bytes: int, max_unpacked_bytes: int, member: str | None = None
) -> ExtractedFiles:
    """Extracts the weights from the file at `path` to the empty `folder`. A safetensors file stays where it is.

    `member` is the path of the weights in an archive; without it, the archive must have one weights file. Blocking.
    Raises `InvalidLoraFile` with a message for the caller, and `OSError` if writing to disk fails.
    """
    try:
        file_type = detect_file_type(path)
        if file_type == "gzip":
            with gzip.open(path) as compressed:
                path = _copy(compressed, folder / "decompressed", max_unpacked_bytes)
            file_type = detect_file_type(path)
        if file_type in ("tar", "zip"):
            with _open_archive(path, file_type) as members:
                extracted = _extract_members(members, folder, max_weights_bytes, member)
            _check_is_safetensors(extracted.weights)
            return extracted
    except _ARCHIVE_ERRORS as error:
        raise InvalidLoraFile("the archive is damaged or truncated") from error
    if file_type != "safetensors":
        raise InvalidLoraFile("it is a nested archive; pack the weights once only")
    if member is not None:
        raise InvalidLoraFile(f"it is not an archive, so it has no {display_name(member)}; remove the part after #")
    return ExtractedFiles(path)


class _LimitedFile(FileIO):
    """Rejects reads of more than `max_read_bytes`, and offsets outside the file.

    The standard library trusts the sizes and offsets in archives.
    """

    def __init__(self, path: Path, max_read_bytes: int, error: str) -> None:
        super().__init__(path)
        self._size_bytes = path.stat().st_size
        self._max_read_bytes = max_read_bytes
        self._error = error

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self._max_read_bytes:
            raise InvalidLoraFile(self._error)
        content = super().read(self._max_read_bytes + 1 if size is None or size < 0 else size) or b""
        if len(content) > self._max_read_bytes:
            raise InvalidLoraFile(self._error)
        return content

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        if whence == SEEK_SET and not 0 <= offset <= self._size_bytes:
            raise EOFError
        return super().seek(offset, whence)


@contextmanager
def _open_archive(path: Path, file_type: FileType) -> "Iterator[Iterable[_Member]]":
    """The members of a tar or zip file, which can be opened within the context."""
    if file_type == "zip":
        with (
            _LimitedFile(path, MAX_ZIP_DIRECTORY_BYTES, "the archive contains too many files") as file,
            zipfile.ZipFile(file) as archive,
        ):
            yield _zip_members(archive)
    else:
        with (
            _LimitedFile(path, MAX_TAR_HEADER_BYTES, "the archive has an oversized header") as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            yield _tar_members(tar)


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


def _extract_members(
    members: Iterable[_Member], folder: Path, max_weights_bytes: int, wanted: str | None
) -> ExtractedFiles:
    """Extracts the selected weights file to `folder`, and reads the adapter configuration next to it."""
    files = _checked_files(members)
    selected = _select_weights(list(files), wanted)
    weights = _extract(files[selected], folder / f"weights{WEIGHTS_SUFFIX}", max_weights_bytes)
    config = files.get(selected.parent / CONFIG_NAME)
    config_path = _extract(config, folder / CONFIG_NAME, MAX_CONFIG_BYTES) if config else None
    return ExtractedFiles(weights, config_path.read_bytes() if config_path else None)


def _checked_files(members: Iterable[_Member]) -> dict[PurePosixPath, _Member]:
    """The files of an archive by path. Raises `InvalidLoraFile` if it has links, or paths that lead outside it."""
    files = {}
    for number, member in enumerate(members, start=1):
        if number > MAX_MEMBERS:
            raise InvalidLoraFile(f"the archive contains more than {MAX_MEMBERS} files")
        _check_member(member)
        if member.is_file and not _is_macos_metadata(member.path):
            files[member.path] = member
    return files


def _check_member(member: _Member) -> None:
    if not member.is_file and not member.is_folder:
        raise InvalidLoraFile(f"the archive contains a link or device, {display_name(member.name)}; use files only")
    if member.path.is_absolute() or ".." in member.path.parts:
        raise InvalidLoraFile(f"the archive contains a path that leads outside it, {display_name(member.name)}")


def _is_macos_metadata(path: PurePosixPath) -> bool:
    """macOS adds a file with the same suffix for the metadata of each packed file."""
    return path.name.startswith("._") or "__MACOSX" in path.parts


def _select_weights(paths: Sequence[PurePosixPath], wanted: str | None) -> PurePosixPath:
    """The path `wanted`, or the only one of a weights file. Raises `InvalidLoraFile` with a list if there is none."""
    weights = [path for path in paths if path.suffix.lower() == WEIGHTS_SUFFIX]
    if not weights:
        raise InvalidLoraFile(_missing_weights(paths))
    listed = display_names([str(path) for path in weights])
    if wanted is not None:
        if PurePosixPath(wanted) in weights:
            return PurePosixPath(wanted)
        raise InvalidLoraFile(f"the archive has no {display_name(wanted)}; its weights files are {listed}")
    if len(weights) > 1:
        raise InvalidLoraFile(
            f"the archive contains several weights files: {listed}; "
            f"add # and the path of one of them, as in #{display_name(str(weights[0]))}"
        )
    return weights[0]


def _missing_weights(paths: Sequence[PurePosixPath]) -> str:
    if _is_torch_checkpoint(paths):
        return PICKLE_ERROR
    if not paths:
        return f"the archive is empty; it must contain one {WEIGHTS_SUFFIX} file"
    missing = f"the archive contains no {WEIGHTS_SUFFIX} file, only {display_names([str(path) for path in paths])}"
    is_convertible = any(path.suffix.lower() in REJECTED_SUFFIXES for path in paths)
    return f"{missing}; convert the weights to safetensors" if is_convertible else missing


def _is_torch_checkpoint(paths: Iterable[PurePosixPath]) -> bool:
    return any(path.name == "data.pkl" for path in paths)  # As `torch.save` names the pickle in its zip files.


def _check_is_safetensors(path: Path) -> None:
    """Raises `InvalidLoraFile` if a file from an archive is not a safetensors file."""
    file_type = detect_file_type(path)
    if file_type == "safetensors":
        return
    if file_type == "zip":
        with _open_archive(path, file_type) as members:
            if _is_torch_checkpoint(member.path for member in members):
                raise InvalidLoraFile(PICKLE_ERROR)
    raise InvalidLoraFile("it is a nested archive; pack the weights once only")


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
