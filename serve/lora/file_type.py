"""Detects by its content whether a file can contain LoRA weights."""

import codecs
import tarfile
from pathlib import Path
from typing import Literal

from serve.lora.safetensors_header import InvalidLoraFile

WEIGHTS_SUFFIX = ".safetensors"
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
ACCEPTED_SUFFIXES = (WEIGHTS_SUFFIX, *ARCHIVE_SUFFIXES)
"""Suffixes of files that may contain weights."""
REJECTED_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".gguf", ".onnx")
"""Suffixes of files that may be mistaken for LoRA weights but are unsafe to load or unsupported."""
PICKLE_ERROR = "it is a pickle (torch.save), which could execute code; convert it to safetensors"

FileType = Literal["safetensors", "tar", "gzip", "zip"]

_ARCHIVE_MAGIC: tuple[tuple[bytes, FileType], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
)
_PICKLE_MAGIC = (
    *(bytes((0x80, protocol)) for protocol in range(2, 6)),
    # Protocols 0 and 1 have no magic number: a dictionary, an `OrderedDict` or a list.
    *(b"(dp", b"ccollections\n", b"(lp", b"}q\0", b"]q\0"),
)
_UNSUPPORTED_MAGIC = (
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<", "a web page, not the file that it links to"),
    (b"{", "a JSON document"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
)
_MAX_HEADER_LENGTH = 2**32
"""A safetensors file starts with the length of its header. Text in its place gives a far larger number."""


def detect_file_type(path: Path) -> FileType:
    """The type of a file by its content. Raises `InvalidLoraFile` for types that cannot contain weights."""
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _MAX_HEADER_LENGTH:
        return "safetensors"
    archive_type = next((file_type for magic, file_type in _ARCHIVE_MAGIC if head.startswith(magic)), None)
    if archive_type or _is_tar(head):
        return archive_type or "tar"
    if head.startswith(_PICKLE_MAGIC):
        raise InvalidLoraFile(PICKLE_ERROR)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    description = next((text for magic, text in _UNSUPPORTED_MAGIC if start.startswith(magic)), "unknown data")
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
