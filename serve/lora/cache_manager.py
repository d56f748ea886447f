"""LoRA cache manager: memory and disk tiers, loading on a miss, revalidation, and caching of failures.

Concurrent requests for the same LoRA share one load.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Generic, Protocol

from serve.errors import FetchFailed, PredictionFailed
from serve.lora.disk_cache import CacheEntry, DiskCache, block_key
from serve.lora.loader import LoadedLora
from serve.lora.model_geometry import ModelGeometry
from serve.lora.reference import BlockRefT, CacheHandle, LoraMetadata, Reference, ResolvedLora
from serve.lora.weights import Block
from serve.settings import LoraSettings

MAX_REMEMBERED = 1000


class NegativeCache:
    """By name; the time is given by who asks, in seconds of any one clock."""

    def __init__(self, remember_s: float) -> None:
        self._remember_s = remember_s
        self._until_s: OrderedDict[str, tuple[float, PredictionFailed]] = OrderedDict()

    def add(self, name: str, failure: PredictionFailed, now_s: float) -> None:
        self._until_s[name] = now_s + self._remember_s, failure
        if len(self._until_s) > MAX_REMEMBERED:
            self._until_s.popitem(last=False)

    def raise_if_cached(self, name: str, now_s: float) -> None:
        """Raises what is remembered of `name`."""
        until_s, failure = self._until_s.get(name, (now_s, None))
        if failure is None:
            return
        if now_s < until_s:
            # Not the same one: it would grow with each traceback.
            raise type(failure)(*failure.args)
        del self._until_s[name]


class MemoryCache(Generic[BlockRefT]):
    """`put` takes a block into memory for as long as somebody keeps what it returns."""

    def __init__(self, put: Callable[[Block], BlockRefT], max_bytes: int) -> None:
        self._put = put
        self._max_bytes = max_bytes
        self._copies: OrderedDict[str, CacheHandle[BlockRefT]] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def get(self, key: str) -> CacheHandle[BlockRefT] | None:
        if key in self._copies:
            self._copies.move_to_end(key)
        return self._copies.get(key)

    def put(self, key: str, block: Block) -> CacheHandle[BlockRefT]:
        """The block in memory. One that is larger than the budget stays only for as long as the caller keeps it."""
        if (known := self.get(key)) is not None:
            return known
        self._make_room(block.nbytes)
        copy = CacheHandle(self._put(block), secrets.token_hex(8))
        if block.nbytes <= self._max_bytes:
            self._copies[key], self._sizes[key] = copy, block.nbytes
        return copy

    def remove(self, numbers: Collection[str]) -> None:
        """Lets go of those copies; a later copy of the same stays."""
        for key in [key for key, copy in self._copies.items() if copy.id in numbers]:
            self._let_go(key)

    def _make_room(self, size_bytes: int) -> None:
        while self._copies and sum(self._sizes.values()) + size_bytes > self._max_bytes:
            self._let_go(next(iter(self._copies)))

    def _let_go(self, key: str) -> None:
        del self._copies[key], self._sizes[key]


MAX_ENTRIES = 10_000
"""Names whose weights are known at once."""

log = logging.getLogger(__name__)


class LoraLoaderProtocol(Protocol):
    """As `serve.lora.loader.Loader` does it."""

    async def load(
        self, reference: Reference, geometry: ModelGeometry, known_revision: str | None = None
    ) -> LoadedLora | None:
        """The LoRA, or None if its content is still that of `known_revision`."""


class LoraCacheManager(Generic[BlockRefT]):
    """Belongs to one event loop. `put` takes a block into memory for as long as what it returns is kept."""

    def __init__(
        self,
        loader: LoraLoaderProtocol,
        shelf: DiskCache,
        put: Callable[[Block], BlockRefT],
        settings: LoraSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._loader = loader
        self._shelf = shelf
        self._at_the_shelf = ThreadPoolExecutor(1, thread_name_prefix="lora-shelf")
        self._memory = MemoryCache(put, settings.cache.memory_bytes)
        self._settings = settings
        self._clock = clock
        self._cards = OrderedDict(shelf.entries())
        self._failures = NegativeCache(settings.failure_ttl_s)
        self._errands: dict[str, asyncio.Task[ResolvedLora[BlockRefT]]] = {}
        self._writing: set[asyncio.Future[None]] = set()

    async def get(
        self, reference: Reference, geometry: ModelGeometry, lost: Collection[str] = ()
    ) -> ResolvedLora[BlockRefT]:
        """The LoRA for models of `geometry`.

        `lost` has the numbers of copies that could not be read: other ones take their place. Who
        leaves meanwhile leaves the work to others, and to those who will ask later. Raises `FetchFailed` and
        `InvalidLora`, also what was found a moment ago.
        """
        self._memory.remove(lost)
        name = self._name(reference, geometry)
        self._failures.raise_if_cached(name, self._clock())
        if errand := self._errands.get(name):
            return (await asyncio.shield(errand)).as_memory_hit()
        return await asyncio.shield(self._send(name, reference, geometry))

    async def close(self) -> None:
        """Lets go of who still waits, and returns when what was begun is on the disk."""
        for errand in self._errands.values():
            errand.cancel()
        await asyncio.gather(*self._errands.values(), *self._writing, return_exceptions=True)
        self._at_the_shelf.shutdown()

    def _name(self, reference: Reference, geometry: ModelGeometry) -> str:
        """What was asked for. Whether a file is taken, and what becomes of it, depends on more than the file."""
        asked = f"{reference.key} {geometry} {self._settings.max_rank} {self._settings.max_tensors}"
        return hashlib.sha256(asked.encode()).hexdigest()

    def _is_current(self, card: CacheEntry, reference: Reference) -> bool:
        return not reference.may_change or self._clock() - card.checked_at < self._settings.revalidate_after_s

    def _send(
        self, name: str, reference: Reference, geometry: ModelGeometry
    ) -> "asyncio.Task[ResolvedLora[BlockRefT]]":
        errand = asyncio.create_task(self._find(name, reference, geometry))
        self._errands[name] = errand

        def done(_: object) -> None:
            del self._errands[name]
            failure = None if errand.cancelled() else errand.exception()
            if isinstance(failure, PredictionFailed):
                self._failures.add(name, failure, self._clock())

        errand.add_done_callback(done)
        return errand

    async def _find(self, name: str, reference: Reference, geometry: ModelGeometry) -> ResolvedLora[BlockRefT]:
        card = self._cards.get(name)
        known = await self._at_hand(card) if card else None
        if card is None or known is None:
            loaded = await self._loader.load(reference, geometry)
            assert loaded is not None, "nothing was known that it could be the same as"
            return await self._keep(name, loaded)
        if self._is_current(card, reference):
            return known
        try:
            newer = await self._loader.load(reference, geometry, card.revision)
        except FetchFailed as failure:
            log.warning(
                "%s cannot be looked up again, what is known of it is used: %s", reference.display_name, failure.why
            )
            return self._put_off(name, card, known)
        return await self._keep(name, newer) if newer else self._confirm(name, card, known)

    async def _at_hand(self, card: CacheEntry) -> ResolvedLora[BlockRefT] | None:
        key = card.metadata.key
        if copy := self._memory.get(key):
            return ResolvedLora(card.metadata, copy, "memory")
        block = await asyncio.get_running_loop().run_in_executor(self._at_the_shelf, self._shelf.read, key)
        return None if block is None else ResolvedLora(card.metadata, self._memory.put(key, block), "disk")

    async def _keep(self, name: str, loaded: LoadedLora) -> ResolvedLora[BlockRefT]:
        key = await asyncio.to_thread(block_key, loaded.block)
        facts = LoraMetadata(key, loaded.block.nbytes, loaded.weights.rank, loaded.weights.unapplied)
        card = CacheEntry(facts, loaded.revision, self._clock())
        copy = self._memory.put(key, loaded.block)
        self._remember(name, card)
        self._write(lambda: self._shelf.write(name, card, loaded.block))
        return ResolvedLora(facts, copy, "download", loaded.fetched_bytes, loaded.fetch_s, loaded.check_s)

    def _confirm(self, name: str, card: CacheEntry, known: ResolvedLora[BlockRefT]) -> ResolvedLora[BlockRefT]:
        """The name still means the same."""
        card = replace(card, checked_at=self._clock())
        self._remember(name, card)
        self._write(lambda: self._shelf.write_entry(name, card))
        return known

    def _put_off(self, name: str, card: CacheEntry, known: ResolvedLora[BlockRefT]) -> ResolvedLora[BlockRefT]:
        """What is known is used until the next attempt, which is not made for each request."""
        waited_s = self._settings.revalidate_after_s - self._settings.failure_ttl_s
        self._remember(name, replace(card, checked_at=self._clock() - waited_s))
        return replace(known, stale=True)

    def _remember(self, name: str, card: CacheEntry) -> None:
        self._cards[name] = card
        self._cards.move_to_end(name)
        if len(self._cards) > MAX_ENTRIES:
            self._cards.popitem(last=False)

    def _write(self, work: Callable[[], None]) -> None:
        """Nobody waits for the disk."""
        writing = asyncio.get_running_loop().run_in_executor(self._at_the_shelf, work)
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
