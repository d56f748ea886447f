"""The memory tier of the LoRA cache: size limit and eviction."""

import numpy as np

from serve.lora.cache_manager import MemoryCache
from serve.lora.weights import Block


class CountingStore:
    """A memory cache whose blocks are referred to by the number of the `put` that stored them."""

    def __init__(self, max_bytes: int) -> None:
        self.puts = 0
        self.cache = MemoryCache(self._put, max_bytes)

    def get(self, key: str) -> int | None:
        handle = self.cache.get(key)
        return handle.block if handle else None

    def put(self, key: str, size_bytes: int) -> int:
        return self.cache.put(key, np.zeros(size_bytes, np.uint8)).block

    def _put(self, block: Block) -> int:
        self.puts += 1
        return self.puts


def test_least_recently_used_block_is_evicted() -> None:
    store = CountingStore(100)
    for key in "abc":
        store.put(key, 33)
    assert store.get("a") == 1
    store.put("d", 30)
    assert [store.get(key) for key in "abcd"] == [1, None, 3, 4]


def test_as_many_blocks_as_necessary_are_evicted() -> None:
    store = CountingStore(100)
    for key in "abc":
        store.put(key, 30)
    store.put("d", 60)
    assert [store.get(key) for key in "abcd"] == [None, None, 3, 4]


def test_equal_keys_are_stored_once() -> None:
    store = CountingStore(100)
    assert (store.put("a", 10), store.put("a", 10)) == (1, 1)


def test_block_larger_than_the_cache_is_returned_but_not_kept() -> None:
    store = CountingStore(100)
    assert store.put("a", 101) == 1
    assert store.get("a") is None


def test_removed_handle_is_replaced_once() -> None:
    store = CountingStore(100)
    lost = [store.cache.put("a", np.zeros(10, np.uint8)).id]
    for _ in range(2):
        store.cache.remove(lost)
        assert store.put("a", 10) == 2
