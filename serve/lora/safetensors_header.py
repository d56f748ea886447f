"""Parses and checks the header of a safetensors file before any tensor is read.

Format: 8 bytes of length, little-endian; that many bytes of JSON with dtype, shape and offsets of each tensor; then the
data, which the tensors cover without gaps.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16 * 2**20
MAX_DIMENSIONS = 8
MAX_NAME_CHARS = 120
MAX_LISTED_NAMES = 8
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}


class InvalidLoraFile(ValueError):
    """The file cannot be used. The message is meant for the caller."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as described in the header. `begin` and `end` are byte offsets from the end of the header."""

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
    """The header of a file of `size_bytes`, read from the start of `file`. Raises `InvalidLoraFile`."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if size_bytes < LENGTH_BYTES or not 2 <= length <= MAX_HEADER_BYTES:
        raise InvalidLoraFile("it is not a safetensors file")
    data_offset = LENGTH_BYTES + length
    if data_offset > size_bytes:
        raise InvalidLoraFile(f"the file is truncated: it has {size_bytes} bytes, its header alone needs {data_offset}")
    fields = _parse_json(file.read(length))
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidLoraFile("the metadata in its header must be a map of strings")
    if len(fields) > max_tensors:
        raise InvalidLoraFile(f"it has {len(fields)} tensors; at most {max_tensors} are accepted")
    entries = {name: _parse_entry(name, entry) for name, entry in fields.items()}
    _check_layout(entries, data_offset, size_bytes)
    return Header(entries, metadata, data_offset)


def display_name(name: str) -> str:
    """A name from an untrusted file for use in a message: on one line, printable, at most 120 characters."""
    short = name if len(name) <= MAX_NAME_CHARS else f"{name[: MAX_NAME_CHARS - 1]}…"
    return short.encode(errors="backslashreplace").decode() if short.isprintable() else ascii(short)


def display_names(names: Sequence[str]) -> str:
    """Names from an untrusted source for use in a message: the first `MAX_LISTED_NAMES`, and how many follow."""
    listed = ", ".join(display_name(name) for name in names[:MAX_LISTED_NAMES])
    return f"{listed} and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else listed


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text, object_pairs_hook=_dict_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidLoraFile("its header is damaged: it is not valid JSON, or it has a duplicate name") from error
    if not isinstance(fields, dict):
        raise InvalidLoraFile("its header is damaged: it is not a JSON object")
    return fields


def _dict_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("duplicate name")
    return fields


def _parse_entry(name: str, entry: object) -> TensorEntry:
    invalid = InvalidLoraFile(f"its header is damaged at the tensor {display_name(name)}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise invalid
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise InvalidLoraFile(f"its tensor {display_name(name)} has the unknown type {display_name(str(dtype))}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS or not _are_sizes(offsets) or len(offsets) != 2:
        raise invalid
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise invalid
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_layout(entries: Mapping[str, TensorEntry], data_offset: int, size_bytes: int) -> None:
    """Rejects overlaps, which let a small file expand to a large one, and gaps, which can hide other data."""
    spans = sorted((entry.begin, entry.end) for entry in entries.values())
    ends = [0, *(end for _, end in spans)]
    if [begin for begin, _ in spans] != ends[:-1]:
        raise InvalidLoraFile("its header is damaged: tensors overlap or leave gaps")
    expected_bytes = data_offset + ends[-1]
    if size_bytes < expected_bytes:
        raise InvalidLoraFile(f"the file is truncated: it has {size_bytes} bytes and should have {expected_bytes}")
    if size_bytes > expected_bytes:
        raise InvalidLoraFile(f"it has {size_bytes - expected_bytes} extra bytes after its last tensor")
