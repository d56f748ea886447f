"""Safetensors headers are parsed. Damaged and malicious headers are rejected."""

import json
import struct
import time
from io import BytesIO
from typing import Any

import pytest
import safetensors.torch
import torch

from serve.lora.safetensors_header import Header, InvalidLoraFile, TensorEntry, display_name, read_header


def file_with(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read(content: bytes, max_tensors: int = 10) -> Header:
    return read_header(BytesIO(content), len(content), max_tensors)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_header_written_by_safetensors_is_parsed() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "empty": torch.zeros(0)}
    header = read(safetensors.torch.save(tensors, {"format": "pt"}))
    assert header.metadata == {"format": "pt"}
    assert {name: (entry.dtype, entry.shape) for name, entry in header.entries.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (4,)),
        "empty": ("F32", (0,)),
    }


def test_offsets_are_relative_to_the_end_of_the_header() -> None:
    content = file_with({"a": entry()}, b"12345678")
    header = read(content)
    assert header.entries == {"a": TensorEntry("F32", (2,), 0, 8)}
    assert content[header.data_offset :] == b"12345678"


def test_all_dtypes_of_safetensors_are_accepted() -> None:
    small = (torch.bool, torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.int16, torch.uint16)
    large = (torch.int32, torch.uint32, torch.float32, torch.int64, torch.uint64, torch.float64)
    for dtype in (*small, torch.float16, torch.bfloat16, *large):
        header = read(safetensors.torch.save({"a": torch.zeros(3).to(dtype)}))
        assert header.entries["a"].end == 3 * dtype.itemsize


INVALID_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a safetensors"),
    "shorter than the length": (b"1234567", "not a safetensors"),
    "web page": (b"<!DOCTYPE html><html>", "not a safetensors"),
    "huge header": (struct.pack("<Q", 2**63) + b"{}", "not a safetensors"),
    "header above the limit": (struct.pack("<Q", 16 * 2**20 + 1) + b"{}", "not a safetensors"),
    "truncated header": (struct.pack("<Q", 1000) + b"{}", "truncated.* 10 bytes.* 1008"),
    "invalid JSON": (file_with(b"{nonsense}"), "not valid JSON"),
    "invalid UTF-8": (file_with(b"\xff\xfe\xfd"), "not valid JSON"),
    "deeply nested": (file_with(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "not valid JSON"),
    "too many digits": (file_with(b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
    "list": (file_with([1, 2]), "JSON object"),
    "duplicate name": (file_with(b'{"a":{"dtype":"F32"},"a":{"dtype":"F32"}}'), "duplicate name"),
    "number in the metadata": (file_with({"__metadata__": {"a": 1}}), "metadata"),
    "metadata is a string": (file_with({"__metadata__": "a"}), "metadata"),
    "too many tensors": (
        file_with({str(name): entry(shape=(0,), offsets=(0, 0)) for name in range(11)}),
        "11 tensors",
    ),
    "entry is a number": (file_with({"a": 5}), r"damaged.* a\b"),
    "missing field": (file_with({"a": {"dtype": "F32", "shape": []}}), r"damaged.* a\b"),
    "extra field": (file_with({"a": {**entry(), "more": 1}}, bytes(8)), r"damaged.* a\b"),
    "unknown dtype": (file_with({"a": entry("F7")}, bytes(8)), r"\ba\b.*unknown type F7"),
    "dtype is a list": (file_with({"a": entry(["F32"])}, bytes(8)), "unknown type"),
    "negative dimension": (file_with({"a": entry(shape=(-1, -2))}, bytes(8)), "damaged"),
    "boolean dimension": (file_with({"a": entry(shape=(True, 2))}, bytes(8)), "damaged"),
    "fractional dimension": (file_with({"a": entry(shape=(2.0,))}, bytes(8)), "damaged"),
    "huge dimension": (file_with({"a": entry(shape=(2**63, 2))}, bytes(8)), "damaged"),
    "too many dimensions": (file_with({"a": entry(shape=[1] * 9)}, bytes(4)), "damaged"),
    "offsets in the wrong order": (file_with({"a": entry(offsets=(8, 0))}, bytes(8)), "damaged"),
    "three offsets": (file_with({"a": entry(offsets=(0, 8, 8))}, bytes(8)), "damaged"),
    "size differs from the shape": (file_with({"a": entry(shape=(3,))}, bytes(8)), "damaged"),
    "overlap": (file_with({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "overlap"),
    "same bytes for two tensors": (file_with({"a": entry(), "b": entry()}, bytes(8)), "overlap"),
    "gap": (file_with({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "gaps"),
    "gap at the start": (file_with({"a": entry(offsets=(4, 12))}, bytes(12)), "gaps"),
    "truncated data": (file_with({"a": entry()}, bytes(7)), r"truncated.* \d+ bytes.* \d+"),
    "extra data": (file_with({"a": entry()}, bytes(10)), "2 extra bytes"),
}


@pytest.mark.parametrize(("content", "pattern"), INVALID_FILES.values(), ids=INVALID_FILES)
def test_invalid_header_is_rejected_quickly(content: bytes, pattern: str) -> None:
    start_s = time.monotonic()
    with pytest.raises(InvalidLoraFile, match=pattern):
        read(content)
    assert time.monotonic() - start_s < 1


@pytest.mark.parametrize(
    ("name", "displayed"),
    [
        ("transformer.x", "transformer.x"),
        ("näme", "näme"),
        ("two\nlines", r"'two\nlines'"),
        ("half \ud800", r"'half \ud800'"),
        ("x" * 200, "x" * 119 + "…"),
    ],
)
def test_display_name_is_one_short_printable_line(name: str, displayed: str) -> None:
    assert display_name(name) == displayed
