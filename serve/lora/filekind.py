"""What a file is, by the bytes that it begins with: weights, an archive, or what is often found in their place."""

import tarfile
from pathlib import Path
from typing import Literal

from serve.lora.header import BadFile

Kind = Literal["safetensors", "tar", "gzip", "zip"]

_ARCHIVES: tuple[tuple[bytes, Kind], ...] = ((b"\x1f\x8b", "gzip"), (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip"))
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


def kind_of(path: Path) -> Kind:
    """The kind of a file that may hold weights. Raises `BadFile` for anything else, naming what it is."""
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _LARGEST_LENGTH:
        return "safetensors"
    kind = next((kind for magic, kind in _ARCHIVES if head.startswith(magic)), None)
    if kind or _is_tar(head):
        return kind or "tar"
    found = next((what for magic, what in _STRANGERS if head.lstrip().startswith(magic)), "of another kind")
    raise BadFile(
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
