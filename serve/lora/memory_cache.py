"""Memory tier of the LoRA cache."""

import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Generic

from serve import telemetry
from serve.lora.resolved_lora import BlockRefT, CacheHandle
from serve.lora.weights import Block


class MemoryCache(Generic[BlockRefT]):
    """Keeps at most `max_bytes` of blocks in memory and evicts the least recently used ones.

    `put` stores a block in memory for as long as its return value is referenced.
    """

    def __init__(self, put: Callable[[Block], BlockRefT], max_bytes: int) -> None:
        self._put = put
        self._max_bytes = max_bytes
        self._handles: OrderedDict[str, CacheHandle[BlockRefT]] = OrderedDict()
        self._sizes: dict[str, int] = {}
        telemetry.LORA_EVICTIONS.add(0, tier="memory")
        telemetry.LORA_CACHE_LIMIT_BYTES.set(max_bytes, tier="memory")
        self._record_size()

    def get(self, key: str) -> CacheHandle[BlockRefT] | None:
        if key in self._handles:
            self._handles.move_to_end(key)
        return self._handles.get(key)

    def put(self, key: str, block: Block) -> CacheHandle[BlockRefT]:
        """The handle of `block`, which is stored if necessary. A block above `max_bytes` is not kept in the cache."""
        if (cached := self.get(key)) is not None:
            return cached
        self._evict_for(block.nbytes)
        handle = CacheHandle(self._put(block), secrets.token_hex(8))
        if block.nbytes <= self._max_bytes:
            self._handles[key], self._sizes[key] = handle, block.nbytes
        self._record_size()
        return handle

    def remove(self, ids: Collection[str]) -> None:
        """Removes the handles with these ids. Newer handles of the same blocks stay."""
        for key in [key for key, handle in self._handles.items() if handle.id in ids]:
            self._remove_key(key)
        self._record_size()

    def _evict_for(self, size_bytes: int) -> None:
        while self._handles and sum(self._sizes.values()) + size_bytes > self._max_bytes:
            self._remove_key(next(iter(self._handles)))
            telemetry.LORA_EVICTIONS.add(tier="memory")

    def _remove_key(self, key: str) -> None:
        del self._handles[key], self._sizes[key]

    def _record_size(self) -> None:
        telemetry.LORA_CACHE_BYTES.set(sum(self._sizes.values()), tier="memory")
