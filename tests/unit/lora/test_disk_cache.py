"""The disk tier of the LoRA cache: persistence, eviction and damaged files."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serve import telemetry
from serve.lora.disk_cache import CacheEntry, DiskCache, block_key
from serve.lora.resolved_lora import LoraMetadata
from serve.lora.weights import Block
from tests.logs import Logs
from tests.metrics import RecordedMetrics


def block(value: int, size: int = 100) -> Block:
    return np.full(size, value, np.uint8)


def entry_of(content: Block, checked_at: float = 1.0) -> CacheEntry:
    metadata = LoraMetadata(block_key(content), content.nbytes, rank=4, unapplied=("a tensor: no such layer",))
    return CacheEntry(metadata, "revision", checked_at)


def write(cache: DiskCache, name: str, content: Block) -> CacheEntry:
    entry = entry_of(content)
    cache.write(name, entry, content)
    return entry


def test_content_persists_for_a_later_process(tmp_path: Path) -> None:
    entry = write(DiskCache(tmp_path, 1000), "a", block(1))
    cache = DiskCache(tmp_path, 1000)
    assert cache.entries() == {"a": entry}
    found = cache.read(entry.metadata.key)
    assert found is not None
    assert np.array_equal(found, block(1))


def test_several_names_share_one_block(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 150)
    assert write(cache, "a", block(1)) == write(cache, "b", block(1))
    assert set(cache.entries()) == {"a", "b"}


def test_new_content_replaces_the_entry_of_a_name(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    write(cache, "a", block(1))
    newer = write(cache, "a", block(2))
    assert cache.entries() == {"a": newer}
    assert len(list(tmp_path.rglob("entry-*"))) == 1


def test_entry_can_be_rewritten(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    entry = write(cache, "a", block(1))
    cache.write_entry("a", replace(entry, checked_at=2.0))
    assert cache.entries()["a"].checked_at == 2.0


@pytest.mark.parametrize(
    "damage", [lambda content: content[:50], lambda content: b"x" + content[1:], lambda content: b""]
)
def test_damaged_block_is_deleted(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cache = DiskCache(tmp_path, 1000)
    key = write(cache, "a", block(1)).metadata.key
    (path,) = tmp_path.rglob("block")
    path.write_bytes(damage(path.read_bytes()))
    assert cache.read(key) is None
    assert cache.entries() == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"metadata": 1}', b'{"metadata": {"key": 1}, "revision": 0}'])
def test_damaged_entry_is_ignored(tmp_path: Path, content: bytes) -> None:
    cache = DiskCache(tmp_path, 1000)
    write(cache, "a", block(1))
    (path,) = tmp_path.rglob("entry-*")
    path.write_bytes(content)
    assert cache.entries() == {}


def test_least_recently_used_block_is_evicted(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 300)
    keys = [write(cache, str(value), block(value)).metadata.key for value in range(3)]
    for age_s, key in enumerate(reversed(keys)):
        (path,) = tmp_path.rglob(f"{key}/block")
        os.utime(path, (age_s, age_s))
    assert cache.read(keys[2]) is not None, "reading makes the block the most recently used"
    write(cache, "3", block(3))
    assert [cache.read(key) is not None for key in keys] == [True, False, True]
    assert set(cache.entries()) == {"0", "2", "3"}


def test_block_larger_than_the_cache_is_not_stored_and_evicts_nothing(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 300)
    entry = write(cache, "a", block(1))
    write(cache, "b", block(2, size=301))
    assert cache.entries() == {"a": entry}


def test_unwritable_disk_is_logged_and_ignored(tmp_path: Path, logs: Logs) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    cache = DiskCache(file, 1000)
    key = write(cache, "a", block(1)).metadata.key
    assert (cache.entries(), cache.read(key)) == ({}, None)
    assert "disk cache failed" in logs.text


def test_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", raise_disk_full)
    cache = DiskCache(tmp_path, 1000)
    assert cache.read(write(cache, "a", block(1)).metadata.key) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_size_evictions_and_failed_writes_are_recorded(tmp_path: Path, metrics: RecordedMetrics) -> None:
    write(DiskCache(tmp_path, 300), "a", block(0))
    cache = DiskCache(tmp_path, 300)
    assert metrics.value(telemetry.LORA_CACHE_BYTES, "disk") == 100
    assert metrics.value(telemetry.LORA_CACHE_LIMIT_BYTES, "disk") == 300
    for value in range(1, 5):
        write(cache, f"name {value}", block(value))
    assert metrics.value(telemetry.LORA_CACHE_BYTES, "disk") == 300
    assert metrics.value(telemetry.LORA_EVICTIONS, "disk") == 2
    assert metrics.value(telemetry.LORA_WRITE_ERRORS) == 0
    file = tmp_path / "file"
    file.touch()
    write(DiskCache(file, 300), "a", block(1))
    assert metrics.value(telemetry.LORA_WRITE_ERRORS) == 1
