"""`MemoryCache`: size limit and eviction."""

import numpy as np

from serve import telemetry
from serve.lora.memory_cache import MemoryCache
from serve.lora.weights import Block
from tests.metrics import RecordedMetrics


class NumberingCache:
    """A memory cache whose stored blocks are numbers: 1 for the first block that it stores, and so on."""

    def __init__(self, max_bytes: int) -> None:
        self.puts = 0
        self.memory = MemoryCache(self._put, max_bytes)

    def get(self, key: str) -> int | None:
        handle = self.memory.get(key)
        return handle.block if handle else None

    def put(self, key: str, size_bytes: int) -> int:
        return self.memory.put(key, np.zeros(size_bytes, np.uint8)).block

    def _put(self, block: Block) -> int:
        self.puts += 1
        return self.puts


def test_least_recently_used_block_is_evicted() -> None:
    cache = NumberingCache(100)
    for key in "abc":
        cache.put(key, 33)
    assert cache.get("a") == 1
    cache.put("d", 30)
    assert [cache.get(key) for key in "abcd"] == [1, None, 3, 4]


def test_as_many_blocks_as_necessary_are_evicted() -> None:
    cache = NumberingCache(100)
    for key in "abc":
        cache.put(key, 30)
    cache.put("d", 60)
    assert [cache.get(key) for key in "abcd"] == [None, None, 3, 4]


def test_equal_keys_are_stored_once() -> None:
    cache = NumberingCache(100)
    assert (cache.put("a", 10), cache.put("a", 10)) == (1, 1)


def test_block_larger_than_the_cache_is_returned_but_not_kept() -> None:
    cache = NumberingCache(100)
    assert cache.put("a", 101) == 1
    assert cache.get("a") is None


def test_removed_handle_is_replaced_once() -> None:
    cache = NumberingCache(100)
    lost = [cache.memory.put("a", np.zeros(10, np.uint8)).id]
    for _ in range(2):
        cache.memory.remove(lost)
        assert cache.put("a", 10) == 2


def test_size_and_evictions_are_recorded(metrics: RecordedMetrics) -> None:
    cache = NumberingCache(100)
    assert metrics.value(telemetry.LORA_CACHE_LIMIT_BYTES, "memory") == 100
    for key in "abcd":
        cache.put(key, 40)
    assert metrics.value(telemetry.LORA_CACHE_BYTES, "memory") == 80
    assert metrics.value(telemetry.LORA_EVICTIONS, "memory") == 2
    cache.memory.remove([handle.id for handle in (cache.memory.get("d"),) if handle])
    assert metrics.value(telemetry.LORA_CACHE_BYTES, "memory") == 40
    assert metrics.value(telemetry.LORA_EVICTIONS, "memory") == 2
