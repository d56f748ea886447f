"""A budget of bytes, least recently used first."""

import numpy as np

from serve.lora.cache_manager import MemoryCache
from serve.lora.weights import Block


class Store:
    """Counts what is put, and gives each its number."""

    def __init__(self, max_bytes: int) -> None:
        self.puts = 0
        self.memory = MemoryCache(self._put, max_bytes)

    def get(self, key: str) -> int | None:
        copy = self.memory.get(key)
        return copy.block if copy else None

    def take(self, key: str, size: int) -> int:
        return self.memory.put(key, np.zeros(size, np.uint8)).block

    def _put(self, block: Block) -> int:
        self.puts += 1
        return self.puts


def test_what_was_used_longest_ago_goes_first() -> None:
    store = Store(100)
    for key in "abc":
        store.take(key, 33)
    assert store.get("a") == 1
    store.take("d", 30)
    assert [store.get(key) for key in "abcd"] == [1, None, 3, 4]


def test_as_many_go_as_must() -> None:
    store = Store(100)
    for key in "abc":
        store.take(key, 30)
    store.take("d", 60)
    assert [store.get(key) for key in "abcd"] == [None, None, 3, 4]


def test_the_same_is_put_once() -> None:
    store = Store(100)
    assert (store.take("a", 10), store.take("a", 10)) == (1, 1)


def test_what_is_larger_than_all_room_is_given_and_not_kept() -> None:
    store = Store(100)
    assert store.take("a", 101) == 1
    assert store.get("a") is None


def test_a_copy_that_is_forgotten_is_put_again_and_the_new_one_stays() -> None:
    store = Store(100)
    lost = [store.memory.put("a", np.zeros(10, np.uint8)).id]
    for _ in range(2):
        store.memory.remove(lost)
        assert store.take("a", 10) == 2
