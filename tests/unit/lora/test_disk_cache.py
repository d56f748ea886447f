"""LoRAs on a disk: what comes back is what was put there, or nothing."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serve.lora.disk_cache import CacheEntry, DiskCache, block_key
from serve.lora.reference import LoraMetadata
from serve.lora.weights import Block
from tests.logs import Logs


def block(number: int, size: int = 100) -> Block:
    return np.full(size, number, np.uint8)


def card(content: Block, checked_at: float = 1.0) -> CacheEntry:
    facts = LoraMetadata(block_key(content), content.nbytes, rank=4, unapplied=("a tensor: no such layer",))
    return CacheEntry(facts, "revision", checked_at)


def keep(shelf: DiskCache, name: str, content: Block) -> CacheEntry:
    shelf.write(name, card(content), content)
    return card(content)


def test_a_later_process_finds_everything(tmp_path: Path) -> None:
    kept = keep(DiskCache(tmp_path, 1000), "a", block(1))
    shelf = DiskCache(tmp_path, 1000)
    assert shelf.entries() == {"a": kept}
    found = shelf.read(kept.metadata.key)
    assert found is not None
    assert np.array_equal(found, block(1))


def test_several_names_share_one_block(tmp_path: Path) -> None:
    shelf = DiskCache(tmp_path, 150)
    assert keep(shelf, "a", block(1)) == keep(shelf, "b", block(1))
    assert set(shelf.entries()) == {"a", "b"}


def test_a_name_means_its_newest_content_only(tmp_path: Path) -> None:
    shelf = DiskCache(tmp_path, 1000)
    keep(shelf, "a", block(1))
    newer = keep(shelf, "a", block(2))
    assert shelf.entries() == {"a": newer}
    assert len(list(tmp_path.rglob("card-*"))) == 1


def test_a_card_can_be_written_anew(tmp_path: Path) -> None:
    shelf = DiskCache(tmp_path, 1000)
    kept = keep(shelf, "a", block(1))
    shelf.write_entry("a", replace(kept, checked_at=2.0))
    assert shelf.entries()["a"].checked_at == 2.0


@pytest.mark.parametrize(
    "harm", [lambda content: content[:50], lambda content: b"x" + content[1:], lambda content: b""]
)
def test_a_damaged_block_is_thrown_away(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    shelf = DiskCache(tmp_path, 1000)
    key = keep(shelf, "a", block(1)).metadata.key
    (path,) = tmp_path.rglob("block")
    path.write_bytes(harm(path.read_bytes()))
    assert shelf.read(key) is None
    assert shelf.entries() == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"facts": 1}', b'{"facts": {"key": 1}, "revision": 0}'])
def test_a_damaged_card_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    shelf = DiskCache(tmp_path, 1000)
    keep(shelf, "a", block(1))
    (path,) = tmp_path.rglob("card-*")
    path.write_bytes(content)
    assert shelf.entries() == {}


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    shelf = DiskCache(tmp_path, 300)
    keys = [keep(shelf, str(number), block(number)).metadata.key for number in range(3)]
    for age, key in enumerate(reversed(keys)):
        (path,) = tmp_path.rglob(f"{key}/block")
        os.utime(path, (age, age))
    assert shelf.read(keys[2]) is not None, "which makes it the newest"
    keep(shelf, "3", block(3))
    assert [shelf.read(key) is not None for key in keys] == [True, False, True]
    assert set(shelf.entries()) == {"0", "2", "3"}


def test_what_is_larger_than_the_shelf_is_not_kept_and_harms_nobody(tmp_path: Path) -> None:
    shelf = DiskCache(tmp_path, 300)
    kept = keep(shelf, "a", block(1))
    keep(shelf, "b", block(2, size=301))
    assert shelf.entries() == {"a": kept}


def test_a_disk_that_cannot_be_written_costs_only_time(tmp_path: Path, logs: Logs) -> None:
    occupied = tmp_path / "file"
    occupied.write_bytes(b"")
    shelf = DiskCache(occupied, 1000)
    key = keep(shelf, "a", block(1)).metadata.key
    assert (shelf.entries(), shelf.read(key)) == ({}, None)
    assert "could not be kept on the disk" in logs.text


def test_a_block_that_breaks_off_while_it_is_written_never_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    shelf = DiskCache(tmp_path, 1000)
    assert shelf.read(keep(shelf, "a", block(1)).metadata.key) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
