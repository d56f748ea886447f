"""Parses and checks the header of a safetensors file before any tensor is read.

Format: 8 bytes of length, little-endian; that many bytes of JSON with dtype, shape and offsets of each tensor; then the
data, which the tensors cover without gaps.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16 * 2**20
MAX_DIMENSIONS = 8
SHOWN_CHARS = 120
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}


class InvalidLoraFile(ValueError):
    """The file cannot be used; the message says why, fit for a user."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as the header tells it; `begin` and `end` are offsets in bytes behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_offset: int
    """Where the data begins in the file."""


def read_header(file: BinaryIO, size_bytes: int, max_tensors: int) -> Header:
    """The header of a file of `size_bytes`, of which `file` stands at the beginning. Raises `InvalidLoraFile`."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if size_bytes < LENGTH_BYTES or not 2 <= length <= MAX_HEADER_BYTES:
        raise InvalidLoraFile("it is no safetensors file")
    data_offset = LENGTH_BYTES + length
    if data_offset > size_bytes:
        raise InvalidLoraFile(
            f"the file is cut off: it has {size_bytes} bytes, and its header alone needs {data_offset}"
        )
    tree = _parsed(file.read(length))
    metadata = tree.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidLoraFile("the metadata in its header are not texts")
    if len(tree) > max_tensors:
        raise InvalidLoraFile(f"it has {len(tree)} tensors, at most {max_tensors} are taken")
    entries = {name: _entry(name, fields) for name, fields in tree.items()}
    _check_cover(entries, data_offset, size_bytes)
    return Header(entries, metadata, data_offset)


def shown(name: str) -> str:
    """A name out of a file, fit for a message."""
    short = name if len(name) <= SHOWN_CHARS else f"{name[: SHOWN_CHARS - 1]}…"
    return short.encode(errors="backslashreplace").decode() if short.isprintable() else ascii(short)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise InvalidLoraFile("its header is damaged: it is no JSON, or names a tensor twice") from error
    if not isinstance(tree, dict):
        raise InvalidLoraFile("its header is damaged: it is no JSON object")
    return tree


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        raise ValueError("a name stands twice")
    return tree


def _entry(name: str, fields: object) -> TensorEntry:
    fault = InvalidLoraFile(f"its header is damaged at the tensor {shown(name)}")
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise fault
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise InvalidLoraFile(f"its tensor {shown(name)} has the unknown type {shown(str(dtype))}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS or not _are_sizes(offsets) or len(offsets) != 2:
        raise fault
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise fault
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_cover(entries: Mapping[str, TensorEntry], data_offset: int, size_bytes: int) -> None:
    """Tensors that overlap could make a small file a large one; gaps could hide something else."""
    spans = sorted((entry.begin, entry.end) for entry in entries.values())
    ends = [0, *(end for _, end in spans)]
    if [begin for begin, _ in spans] != ends[:-1]:
        raise InvalidLoraFile("its header is damaged: tensors overlap or leave gaps")
    expected = data_offset + ends[-1]
    if size_bytes < expected:
        raise InvalidLoraFile(f"the file is cut off: it should have {expected} bytes and has {size_bytes}")
    if size_bytes > expected:
        raise InvalidLoraFile(f"it has {size_bytes - expected} bytes behind its last tensor")
