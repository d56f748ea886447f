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
from serve.lora.disk_cache import Card, Shelf, key_of
from serve.lora.loader import Loaded
from serve.lora.model_geometry import Geometry
from serve.lora.reference import Brought, Copy, Facts, Held, Reference
from serve.lora.weights import Block
from serve.settings import LoraSettings

MAX_REMEMBERED = 1000


class Failures:
    """By name; the time is given by who asks, in seconds of any one clock."""

    def __init__(self, remember_s: float) -> None:
        self._remember_s = remember_s
        self._until_s: OrderedDict[str, tuple[float, PredictionFailed]] = OrderedDict()

    def remember(self, name: str, failure: PredictionFailed, now_s: float) -> None:
        self._until_s[name] = now_s + self._remember_s, failure
        if len(self._until_s) > MAX_REMEMBERED:
            self._until_s.popitem(last=False)

    def tell_again(self, name: str, now_s: float) -> None:
        """Raises what is remembered of `name`."""
        until_s, failure = self._until_s.get(name, (now_s, None))
        if failure is None:
            return
        if now_s < until_s:
            # Not the same one: it would grow with each traceback.
            raise type(failure)(*failure.args)
        del self._until_s[name]


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


MAX_CARDS = 10_000
"""Names whose weights are known at once."""

log = logging.getLogger(__name__)


class Loading(Protocol):
    """As `serve.lora.loader.Loader` does it."""

    async def load(self, reference: Reference, geometry: Geometry, known_revision: str | None = None) -> Loaded | None:
        """The LoRA, or None if its content is still that of `known_revision`."""


class Library(Generic[Held]):
    """Belongs to one event loop. `put` takes a block into memory for as long as what it returns is kept."""

    def __init__(
        self,
        loader: Loading,
        shelf: Shelf,
        put: Callable[[Block], Held],
        settings: LoraSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._loader = loader
        self._shelf = shelf
        self._at_the_shelf = ThreadPoolExecutor(1, thread_name_prefix="lora-shelf")
        self._memory = Memory(put, settings.cache.memory_bytes)
        self._settings = settings
        self._clock = clock
        self._cards = OrderedDict(shelf.cards())
        self._failures = Failures(settings.remember_failure_s)
        self._errands: dict[str, asyncio.Task[Brought[Held]]] = {}
        self._writing: set[asyncio.Future[None]] = set()

    async def bring(self, reference: Reference, geometry: Geometry, lost: Collection[str] = ()) -> Brought[Held]:
        """The LoRA for models of `geometry`.

        `lost` has the numbers of copies that could not be read: other ones take their place. Who
        leaves meanwhile leaves the work to others, and to those who will ask later. Raises `FetchFailed` and
        `LoraRefused`, also what was found a moment ago.
        """
        self._memory.forget(lost)
        name = self._name(reference, geometry)
        self._failures.tell_again(name, self._clock())
        if errand := self._errands.get(name):
            return (await asyncio.shield(errand)).again()
        return await asyncio.shield(self._send(name, reference, geometry))

    async def close(self) -> None:
        """Lets go of who still waits, and returns when what was begun is on the disk."""
        for errand in self._errands.values():
            errand.cancel()
        await asyncio.gather(*self._errands.values(), *self._writing, return_exceptions=True)
        self._at_the_shelf.shutdown()

    def _name(self, reference: Reference, geometry: Geometry) -> str:
        """What was asked for. Whether a file is taken, and what becomes of it, depends on more than the file."""
        asked = f"{reference.key} {geometry} {self._settings.max_rank} {self._settings.max_tensors}"
        return hashlib.sha256(asked.encode()).hexdigest()

    def _is_current(self, card: Card, reference: Reference) -> bool:
        return not reference.may_change or self._clock() - card.checked_at < self._settings.revalidate_after_s

    def _send(self, name: str, reference: Reference, geometry: Geometry) -> "asyncio.Task[Brought[Held]]":
        errand = asyncio.create_task(self._find(name, reference, geometry))
        self._errands[name] = errand

        def done(_: object) -> None:
            del self._errands[name]
            failure = None if errand.cancelled() else errand.exception()
            if isinstance(failure, PredictionFailed):
                self._failures.remember(name, failure, self._clock())

        errand.add_done_callback(done)
        return errand

    async def _find(self, name: str, reference: Reference, geometry: Geometry) -> Brought[Held]:
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
            log.warning("%s cannot be looked up again, what is known of it is used: %s", reference.shown, failure.why)
            return self._put_off(name, card, known)
        return await self._keep(name, newer) if newer else self._confirm(name, card, known)

    async def _at_hand(self, card: Card) -> Brought[Held] | None:
        key = card.facts.key
        if copy := self._memory.get(key):
            return Brought(card.facts, copy, "memory")
        block = await asyncio.get_running_loop().run_in_executor(self._at_the_shelf, self._shelf.read, key)
        return None if block is None else Brought(card.facts, self._memory.take(key, block), "disk")

    async def _keep(self, name: str, loaded: Loaded) -> Brought[Held]:
        key = await asyncio.to_thread(key_of, loaded.block)
        facts = Facts(key, loaded.block.nbytes, loaded.weights.rank, loaded.weights.named)
        card = Card(facts, loaded.revision, self._clock())
        copy = self._memory.take(key, loaded.block)
        self._remember(name, card)
        self._write(lambda: self._shelf.keep(name, card, loaded.block))
        return Brought(facts, copy, "download", loaded.fetched_bytes, loaded.fetch_s, loaded.check_s)

    def _confirm(self, name: str, card: Card, known: Brought[Held]) -> Brought[Held]:
        """The name still means the same."""
        card = replace(card, checked_at=self._clock())
        self._remember(name, card)
        self._write(lambda: self._shelf.note(name, card))
        return known

    def _put_off(self, name: str, card: Card, known: Brought[Held]) -> Brought[Held]:
        """What is known is used until the next attempt, which is not made for each request."""
        waited_s = self._settings.revalidate_after_s - self._settings.remember_failure_s
        self._remember(name, replace(card, checked_at=self._clock() - waited_s))
        return replace(known, outdated=True)

    def _remember(self, name: str, card: Card) -> None:
        self._cards[name] = card
        self._cards.move_to_end(name)
        if len(self._cards) > MAX_CARDS:
            self._cards.popitem(last=False)

    def _write(self, work: Callable[[], None]) -> None:
        """Nobody waits for the disk."""
        writing = asyncio.get_running_loop().run_in_executor(self._at_the_shelf, work)
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
