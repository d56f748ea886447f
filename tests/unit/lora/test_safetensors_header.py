"""The head of a file is believed in nothing that was not checked."""

import json
import struct
import time
from io import BytesIO
from typing import Any

import pytest
import safetensors.torch
import torch

from serve.lora.safetensors_header import Header, InvalidLoraFile, TensorEntry, read_header, shown


def packed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read(content: bytes, max_tensors: int = 10) -> Header:
    return read_header(BytesIO(content), len(content), max_tensors)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_what_the_library_writes_is_read() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "empty": torch.zeros(0)}
    header = read(safetensors.torch.save(tensors, {"format": "pt"}))
    assert header.metadata == {"format": "pt"}
    assert {name: (entry.dtype, entry.shape) for name, entry in header.entries.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (4,)),
        "empty": ("F32", (0,)),
    }


def test_offsets_are_those_behind_the_header() -> None:
    content = packed({"a": entry()}, b"12345678")
    header = read(content)
    assert header.entries == {"a": TensorEntry("F32", (2,), 0, 8)}
    assert content[header.data_offset :] == b"12345678"


def test_the_kinds_of_numbers_are_those_of_the_library() -> None:
    small = (torch.bool, torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.int16, torch.uint16)
    large = (torch.int32, torch.uint32, torch.float32, torch.int64, torch.uint64, torch.float64)
    for dtype in (*small, torch.float16, torch.bfloat16, *large):
        header = read(safetensors.torch.save({"a": torch.zeros(3).to(dtype)}))
        assert header.entries["a"].end == 3 * dtype.itemsize


FAULTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no safetensors"),
    "short": (b"1234567", "no safetensors"),
    "a page": (b"<!DOCTYPE html><html>", "no safetensors"),
    "an endless header": (struct.pack("<Q", 2**63) + b"{}", "no safetensors"),
    "a header over the limit": (struct.pack("<Q", 16 * 2**20 + 1) + b"{}", "no safetensors"),
    "a header cut off": (
        struct.pack("<Q", 1000) + b"{}",
        "cut off: it has 10 bytes, and its header alone needs 1008",
    ),
    "no JSON": (packed(b"{nonsense}"), "no JSON"),
    "no text": (packed(b"\xff\xfe\xfd"), "no JSON"),
    "depth without end": (packed(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "no JSON"),
    "a number without end": (packed(b'{"a":' + b"9" * 5000 + b"}"), "no JSON"),
    "a list": (packed([1, 2]), "no JSON object"),
    "a name twice": (packed(b'{"a":{"dtype":"F32"},"a":{"dtype":"F32"}}'), "names a tensor twice"),
    "metadata of numbers": (packed({"__metadata__": {"a": 1}}), "metadata"),
    "metadata that are none": (packed({"__metadata__": "a"}), "metadata"),
    "many tensors": (packed({str(name): entry(shape=(0,), offsets=(0, 0)) for name in range(11)}), "it has 11 tensors"),
    "no entry": (packed({"a": 5}), "damaged at the tensor a"),
    "a key less": (packed({"a": {"dtype": "F32", "shape": []}}), "damaged at the tensor a"),
    "a key more": (packed({"a": {**entry(), "more": 1}}, bytes(8)), "damaged at the tensor a"),
    "a strange type": (packed({"a": entry("F7")}, bytes(8)), "a has the unknown type F7"),
    "a type that is none": (packed({"a": entry(["F32"])}, bytes(8)), "unknown type"),
    "a side below zero": (packed({"a": entry(shape=(-1, -2))}, bytes(8)), "damaged"),
    "a side of truth": (packed({"a": entry(shape=(True, 2))}, bytes(8)), "damaged"),
    "a side of a fraction": (packed({"a": entry(shape=(2.0,))}, bytes(8)), "damaged"),
    "a side without end": (packed({"a": entry(shape=(2**63, 2))}, bytes(8)), "damaged"),
    "sides without end": (packed({"a": entry(shape=[1] * 9)}, bytes(4)), "damaged"),
    "offsets turned": (packed({"a": entry(offsets=(8, 0))}, bytes(8)), "damaged"),
    "three offsets": (packed({"a": entry(offsets=(0, 8, 8))}, bytes(8)), "damaged"),
    "a size that is not that of the shape": (packed({"a": entry(shape=(3,))}, bytes(8)), "damaged"),
    "an overlap": (packed({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "overlap or leave gaps"),
    "the same bytes twice": (packed({"a": entry(), "b": entry()}, bytes(8)), "overlap or leave gaps"),
    "a gap": (packed({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "overlap or leave gaps"),
    "a late start": (packed({"a": entry(offsets=(4, 12))}, bytes(12)), "overlap or leave gaps"),
    "cut off": (packed({"a": entry()}, bytes(7)), r"cut off: it should have \d+ bytes and has \d+"),
    "more": (packed({"a": entry()}, bytes(10)), "it has 2 bytes behind its last tensor"),
}


@pytest.mark.parametrize(("content", "why"), FAULTS.values(), ids=FAULTS)
def test_a_damaged_or_hostile_file_is_refused_with_the_reason(content: bytes, why: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidLoraFile, match=why):
        read(content)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("transformer.x", "transformer.x"),
        ("näme", "näme"),
        ("two\nlines", r"'two\nlines'"),
        ("half \ud800", r"'half \ud800'"),
        ("x" * 200, "x" * 119 + "…"),
    ],
)
def test_names_of_tensors_are_shown_on_one_short_line(name: str, text: str) -> None:
    assert shown(name) == text
