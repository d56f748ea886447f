"""What is in memory, within a budget of bytes: what was used longest ago goes first. Knows not where memory is."""

import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Generic

from serve.lora.brought import Copy, Held
from serve.lora.packed import Block


class Memory(Generic[Held]):
    """`put` takes a block into memory for as long as somebody keeps what it returns."""

    def __init__(self, put: Callable[[Block], Held], max_bytes: int) -> None:
        self._put = put
        self._max_bytes = max_bytes
        self._copies: OrderedDict[str, Copy[Held]] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def get(self, key: str) -> Copy[Held] | None:
        if key in self._copies:
            self._copies.move_to_end(key)
        return self._copies.get(key)

    def take(self, key: str, block: Block) -> Copy[Held]:
        """The block in memory. One that is larger than the budget stays only for as long as the caller keeps it."""
        if (known := self.get(key)) is not None:
            return known
        self._make_room(block.nbytes)
        copy = Copy(self._put(block), secrets.token_hex(8))
        if block.nbytes <= self._max_bytes:
            self._copies[key], self._sizes[key] = copy, block.nbytes
        return copy

    def forget(self, numbers: Collection[str]) -> None:
        """Lets go of those copies; a later copy of the same stays."""
        for key in [key for key, copy in self._copies.items() if copy.number in numbers]:
            self._let_go(key)

    def _make_room(self, size_bytes: int) -> None:
        while self._copies and sum(self._sizes.values()) + size_bytes > self._max_bytes:
            self._let_go(next(iter(self._copies)))

    def _let_go(self, key: str) -> None:
        del self._copies[key], self._sizes[key]
