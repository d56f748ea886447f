"""LoRA cache manager: memory and disk tiers, loading on a miss, revalidation, and caching of failures.

Concurrent requests for the same LoRA share one load.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Generic, Protocol

from serve.errors import FetchFailed, PredictionFailed
from serve.lora.disk_cache import CacheEntry, DiskCache, block_key
from serve.lora.loader import LoadedLora
from serve.lora.memory_cache import MemoryCache
from serve.lora.model_geometry import ModelGeometry
from serve.lora.reference import Reference
from serve.lora.resolved_lora import BlockRefT, LoraMetadata, ResolvedLora
from serve.lora.uploaded_file import ContentMissing, upload_of
from serve.lora.weights import Block
from serve.settings import LoraSettings

MAX_ENTRIES = 10_000
MAX_FAILURES = 1000

log = logging.getLogger(__name__)


class Loader(Protocol):
    """Implemented by `serve.lora.loader.LoraLoader`."""

    async def load(
        self, reference: Reference, geometry: ModelGeometry, known_revision: str | None = None
    ) -> LoadedLora | None:
        """The LoRA, or None if `known_revision` is still current."""


class LoraCacheManager(Generic[BlockRefT]):
    """Resolves references to LoRAs in memory.

    `put` stores a block in memory for as long as its return value is referenced. An instance belongs to one event loop.
    """

    def __init__(
        self,
        loader: Loader,
        disk: DiskCache,
        put: Callable[[Block], BlockRefT],
        settings: LoraSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._loader = loader
        self._disk = disk
        # One thread, so that reads and writes of the disk cache do not overlap.
        self._disk_thread = ThreadPoolExecutor(1, thread_name_prefix="lora-disk-cache")
        self._disk_writes: set[asyncio.Future[None]] = set()
        self._memory = MemoryCache(put, settings.cache.memory_bytes)
        self._settings = settings
        self._clock = clock
        self._entries = OrderedDict(disk.entries())
        self._failures = NegativeCache(settings.failure_ttl_s)
        self._tasks: dict[str, asyncio.Task[ResolvedLora[BlockRefT]]] = {}

    async def get(
        self, reference: Reference, geometry: ModelGeometry, lost_handle_ids: Collection[str] = ()
    ) -> ResolvedLora[BlockRefT]:
        """The LoRA for models of `geometry`.

        `lost` are the ids of handles whose blocks cannot be read any more; they are replaced. If the caller is
        cancelled, the load continues for other and later callers. Raises `FetchFailed` and `InvalidLora`, which are
        cached for `failure_ttl_s`, and `ContentMissing`.
        """
        self._memory.remove(lost_handle_ids)
        name = self._entry_name(reference, geometry)
        self._failures.raise_if_cached(name, self._clock())
        while task := self._tasks.get(name):
            try:
                return (await asyncio.shield(task)).as_memory_hit()
            except ContentMissing:
                upload = upload_of(reference)
                if upload is None or upload.content is None:
                    raise
                # The load was for a reference without the content.
                self._forget_task(name, task)
        return await asyncio.shield(self._start_task(name, reference, geometry))

    async def close(self) -> None:
        """Cancels running loads, which cancels their callers, and waits for pending disk writes."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._disk_writes, return_exceptions=True)
        self._disk_thread.shutdown()

    def _entry_name(self, reference: Reference, geometry: ModelGeometry) -> str:
        """Covers everything that the result depends on: the reference, the geometry, and the limits on the file."""
        text = f"{reference.key} {geometry} {self._settings.max_rank} {self._settings.max_tensors}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _start_task(
        self, name: str, reference: Reference, geometry: ModelGeometry
    ) -> "asyncio.Task[ResolvedLora[BlockRefT]]":
        task = asyncio.create_task(self._resolve(name, reference, geometry))
        self._tasks[name] = task

        def on_done(_: object) -> None:
            self._forget_task(name, task)
            failure = None if task.cancelled() else task.exception()
            if isinstance(failure, PredictionFailed):
                self._failures.add(name, failure, self._clock())

        task.add_done_callback(on_done)
        return task

    def _forget_task(self, name: str, task: "asyncio.Task[ResolvedLora[BlockRefT]]") -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]

    async def _resolve(self, name: str, reference: Reference, geometry: ModelGeometry) -> ResolvedLora[BlockRefT]:
        entry = self._entries.get(name)
        cached = await self._find_cached(entry) if entry else None
        if entry is None or cached is None:
            loaded = await self._loader.load(reference, geometry)
            assert loaded is not None, "load returns None only if known_revision is given"
            return await self._store(name, loaded)
        if self._is_fresh(entry, reference):
            return cached
        try:
            changed = await self._loader.load(reference, geometry, entry.revision)
        except FetchFailed as failure:
            log.warning("Revalidation of %s failed, using the cached LoRA: %s", reference.display_name, failure.why)
            return self._postpone_revalidation(name, entry, cached)
        return await self._store(name, changed) if changed else self._confirm(name, entry, cached)

    def _is_fresh(self, entry: CacheEntry, reference: Reference) -> bool:
        return not reference.may_change or self._clock() - entry.checked_at < self._settings.revalidate_after_s

    async def _find_cached(self, entry: CacheEntry) -> ResolvedLora[BlockRefT] | None:
        """Looks in memory, then on disk."""
        key = entry.metadata.key
        if handle := self._memory.get(key):
            return ResolvedLora(entry.metadata, handle, "memory")
        block = await asyncio.get_running_loop().run_in_executor(self._disk_thread, self._disk.read, key)
        return None if block is None else ResolvedLora(entry.metadata, self._memory.put(key, block), "disk")

    async def _store(self, name: str, loaded: LoadedLora) -> ResolvedLora[BlockRefT]:
        """Stores a loaded LoRA in memory and, in the background, on disk."""
        key = await asyncio.to_thread(block_key, loaded.block)
        metadata = LoraMetadata(key, loaded.block.nbytes, loaded.weights.slots, loaded.weights.unapplied)
        entry = CacheEntry(metadata, loaded.revision, self._clock())
        handle = self._memory.put(key, loaded.block)
        self._set_entry(name, entry)
        self._write_to_disk(lambda: self._disk.write(name, entry, loaded.block))
        return ResolvedLora(metadata, handle, "download", loaded.fetched_bytes, loaded.fetch_s, loaded.check_s)

    def _confirm(self, name: str, entry: CacheEntry, cached: ResolvedLora[BlockRefT]) -> ResolvedLora[BlockRefT]:
        """Records that the content has not changed."""
        checked = replace(entry, checked_at=self._clock())
        self._set_entry(name, checked)
        self._write_to_disk(lambda: self._disk.write_entry(name, checked))
        return cached

    def _postpone_revalidation(
        self, name: str, entry: CacheEntry, cached: ResolvedLora[BlockRefT]
    ) -> ResolvedLora[BlockRefT]:
        """Retries the revalidation after `failure_ttl_s`, not for each request."""
        elapsed_s = self._settings.revalidate_after_s - self._settings.failure_ttl_s
        self._set_entry(name, replace(entry, checked_at=self._clock() - elapsed_s))
        return replace(cached, stale=True)

    def _set_entry(self, name: str, entry: CacheEntry) -> None:
        self._entries[name] = entry
        self._entries.move_to_end(name)
        if len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)

    def _write_to_disk(self, write: Callable[[], None]) -> None:
        """Runs `write` in the background."""
        future = asyncio.get_running_loop().run_in_executor(self._disk_thread, write)
        self._disk_writes.add(future)
        future.add_done_callback(self._disk_writes.discard)


class NegativeCache:
    """Caches failures by name for `ttl_s`. Times are seconds of any one clock."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._failures: OrderedDict[str, tuple[float, PredictionFailed]] = OrderedDict()
        """Expiry time and failure."""

    def add(self, name: str, failure: PredictionFailed, now_s: float) -> None:
        self._failures[name] = now_s + self._ttl_s, failure
        if len(self._failures) > MAX_FAILURES:
            self._failures.popitem(last=False)

    def raise_if_cached(self, name: str, now_s: float) -> None:
        """Raises the failure cached for `name`, if any."""
        expires_s, failure = self._failures.get(name, (now_s, None))
        if failure is None:
            return
        if now_s < expires_s:
            # A new instance, because the traceback of a reused one grows each time it is raised.
            raise type(failure)(*failure.args)
        del self._failures[name]
