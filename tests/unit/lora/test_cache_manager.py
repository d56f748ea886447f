"""The LoRA cache manager with a fake loader: hits, misses, revalidation, failures, restarts and lost blocks."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from serve.errors import FetchFailed, InvalidLora
from serve.lora.cache_manager import LoraCacheManager
from serve.lora.disk_cache import DiskCache
from serve.lora.loader import LoadedLora
from serve.lora.model_geometry import ModelGeometry
from serve.lora.reference import ArchiveMember, Reference, ReplicateModel
from serve.lora.resolved_lora import ResolvedLora
from serve.lora.uploaded_file import ContentMissing, UploadedFile, upload_of, with_content
from serve.lora.weights import Block, LoraWeights, LowRank, pack, unpack
from serve.settings import LoraSettings
from tests.fakes import FakeClock
from tests.unit.lora.geometries import TINY

MUTABLE, VERSIONED = ReplicateModel("me", "style"), ReplicateModel("me", "style", "0123abcd")
WITHOUT_GUIDANCE = replace(TINY, guidance_embeds=not TINY.guidance_embeds)
SETTINGS = LoraSettings(revalidate_after_s=300, failure_ttl_s=30)


def make_weights(content: int) -> LoraWeights:
    layer = LowRank(torch.full((2, 3), float(content)), torch.ones(4, 2))
    return LoraWeights({"x_embedder": layer}, {}, ("odd: unknown",))


class FakeLoader:
    """Returns weights filled with `content`, or raises `failure`. `load` waits until `may_continue` is set."""

    def __init__(self) -> None:
        self.content = 1
        self.failure: Exception | None = None
        self.calls: list[tuple[Reference, str | None]] = []
        """The reference and known revision of each call of `load`."""
        self.may_continue = asyncio.Event()
        self.may_continue.set()

    async def load(
        self, reference: Reference, geometry: ModelGeometry, known_revision: str | None = None
    ) -> LoadedLora | None:
        self.calls.append((reference, known_revision))
        await self.may_continue.wait()
        upload = upload_of(reference)
        if upload is not None and upload.content is None:
            raise ContentMissing(upload.file_id)
        if self.failure:
            raise self.failure
        if known_revision == str(self.content):
            return None
        weights = make_weights(self.content)
        return LoadedLora(weights, pack(weights), str(self.content), fetched_bytes=10, fetch_s=1.0, check_s=2.0)


class CacheHarness:
    """A cache manager with a fake loader and clock. `blocks` are the blocks put into memory, in order."""

    def __init__(self, folder: Path, settings: LoraSettings = SETTINGS) -> None:
        self.clock, self.loader = FakeClock(), FakeLoader()
        self.folder, self.settings = folder, settings
        self.blocks: list[Block] = []
        self.manager = self._create_manager()

    def _create_manager(self) -> LoraCacheManager[int]:
        return LoraCacheManager(self.loader, DiskCache(self.folder, 10**6), self._put, self.settings, self.clock)

    def _put(self, block: Block) -> int:
        self.blocks.append(block)
        return len(self.blocks) - 1

    async def restart(self) -> None:
        await self.manager.close()
        self.manager = self._create_manager()

    async def get(self, reference: Reference = MUTABLE, lost: tuple[str, ...] = ()) -> ResolvedLora[int]:
        return await self.manager.get(reference, TINY, lost)

    def content(self, resolved: ResolvedLora[int]) -> float:
        return float(unpack(self.blocks[resolved.handle.block]).transformer["x_embedder"].down[0, 0])


@pytest.fixture
async def harness(tmp_path: Path) -> CacheHarness:
    return CacheHarness(tmp_path)


async def test_first_get_loads_and_second_is_a_memory_hit(harness: CacheHarness) -> None:
    first, second = await harness.get(), await harness.get()
    assert (first.origin, first.fetched_bytes, first.fetch_s, first.check_s) == ("download", 10, 1.0, 2.0)
    assert (second.origin, second.fetched_bytes, second.fetch_s) == ("memory", 0, 0.0)
    assert (first.metadata.rank, first.metadata.unapplied) == (2, ("odd: unknown",))
    assert (first.metadata, first.handle, len(harness.loader.calls)) == (second.metadata, second.handle, 1)


async def test_concurrent_gets_share_one_load(harness: CacheHarness) -> None:
    harness.loader.may_continue.clear()
    tasks = [asyncio.create_task(harness.get()) for _ in range(100)]
    await asyncio.sleep(0)
    harness.loader.may_continue.set()
    resolved = await asyncio.gather(*tasks)
    assert len(harness.loader.calls) == len(harness.blocks) == 1
    assert sorted(lora.origin for lora in resolved) == ["download"] + 99 * ["memory"]


@pytest.mark.parametrize("in_archive", [False, True])
async def test_get_with_content_does_not_fail_with_a_load_without_content(
    harness: CacheHarness, in_archive: bool
) -> None:
    first, second = (UploadedFile("0" * 64, file_id) for file_id in ("f1", "f2"))
    without: list[Reference] = [ArchiveMember(upload, "a") if in_archive else upload for upload in (first, second)]
    harness.loader.may_continue.clear()
    tasks = []
    for reference in (without[0], without[1], *(with_content(each, memoryview(b"x")) for each in without)):
        tasks.append(asyncio.create_task(harness.get(reference)))
        await asyncio.sleep(0)
    harness.loader.may_continue.set()
    missing = await asyncio.gather(*tasks[:2], return_exceptions=True)
    assert [type(error) for error in missing] == [ContentMissing] * 2
    assert [harness.content(await task) for task in tasks[2:]] == [1, 1]
    assert len(harness.loader.calls) == 2
    assert (await harness.get(without[0])).origin == "memory"


async def test_get_with_content_joins_a_load_that_has_just_failed(harness: CacheHarness) -> None:
    """The load has ended, but its callbacks have not run yet."""
    upload = UploadedFile("0" * 64, "f1")
    harness.loader.may_continue.clear()
    without = asyncio.create_task(harness.get(upload))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    harness.loader.may_continue.set()
    brings = asyncio.create_task(harness.get(with_content(upload, memoryview(b"x"))))
    assert harness.content(await brings) == 1
    with pytest.raises(ContentMissing):
        await without


@pytest.mark.parametrize("cancelled", [0, 1])
async def test_cancelled_get_does_not_cancel_the_load_for_others(harness: CacheHarness, cancelled: int) -> None:
    harness.loader.may_continue.clear()
    tasks = [asyncio.create_task(harness.get()) for _ in range(2)]
    await asyncio.sleep(0)
    tasks.pop(cancelled).cancel()
    await asyncio.sleep(0)
    harness.loader.may_continue.set()
    assert harness.content(await tasks[0]) == 1
    assert len(harness.loader.calls) == 1


async def test_equal_weights_from_two_references_share_one_block(harness: CacheHarness) -> None:
    resolved = [await harness.get(reference) for reference in (MUTABLE, VERSIONED)]
    assert len(harness.loader.calls) == 2
    assert len(harness.blocks) == 1
    assert resolved[0].metadata.key == resolved[1].metadata.key


async def test_each_geometry_has_its_own_entry(harness: CacheHarness) -> None:
    await harness.manager.get(VERSIONED, TINY)
    await harness.manager.get(VERSIONED, WITHOUT_GUIDANCE)
    assert len(harness.loader.calls) == 2


@pytest.mark.parametrize(("reference", "known_revisions"), [(MUTABLE, [None, "1"]), (VERSIONED, [None])])
async def test_only_old_entries_that_may_change_are_revalidated(
    harness: CacheHarness, reference: Reference, known_revisions: list[str | None]
) -> None:
    for age_s in (0, 299, 2, 299):
        harness.clock.elapsed_s += age_s
        assert harness.content(await harness.get(reference)) == 1
    assert [revision for _, revision in harness.loader.calls] == known_revisions


async def test_changed_content_replaces_the_entry(harness: CacheHarness) -> None:
    old = await harness.get()
    harness.loader.content = 2
    harness.clock.elapsed_s = 301
    new = await harness.get()
    assert (harness.content(old), harness.content(new), new.origin) == (1, 2, "download")
    assert harness.content(await harness.get()) == 2


async def test_failed_revalidation_returns_the_stale_lora(harness: CacheHarness) -> None:
    await harness.get()
    harness.clock.elapsed_s = 301
    harness.loader.failure = FetchFailed("me/style", "its server does not answer")
    assert [(await harness.get()).stale for _ in range(2)] == [True, False]
    assert len(harness.loader.calls) == 2, "the next request must not fetch again"
    harness.clock.elapsed_s += 31
    harness.loader.failure, harness.loader.content = None, 2
    assert harness.content(await harness.get()) == 2


async def test_revalidation_that_finds_an_invalid_lora_fails(harness: CacheHarness) -> None:
    await harness.get()
    harness.clock.elapsed_s = 301
    harness.loader.failure = InvalidLora("me/style", "it is a web page")
    with pytest.raises(InvalidLora, match="web page"):
        await harness.get()


@pytest.mark.parametrize("failure", [FetchFailed("me/style", "404"), InvalidLora("me/style", "rank 4096")])
async def test_failure_is_cached_for_its_ttl(harness: CacheHarness, failure: Exception) -> None:
    harness.loader.failure = failure
    messages = []
    for age_s in (0, 29, 2):
        harness.clock.elapsed_s += age_s
        with pytest.raises(type(failure)) as caught:
            await harness.get()
        messages.append(str(caught.value))
    assert messages == 3 * [str(failure)]
    assert len(harness.loader.calls) == 2
    harness.loader.failure = None
    harness.clock.elapsed_s += 31
    assert harness.content(await harness.get()) == 1


async def test_unexpected_error_is_not_cached(harness: CacheHarness) -> None:
    harness.loader.failure = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        await harness.get()
    harness.loader.failure = None
    assert harness.content(await harness.get()) == 1


async def test_get_after_a_restart_is_a_disk_hit(harness: CacheHarness) -> None:
    first = await harness.get()
    await harness.restart()
    second = await harness.get()
    assert (second.origin, second.metadata, second.fetched_bytes) == ("disk", first.metadata, 0)
    assert len(harness.loader.calls) == 1
    assert harness.content(second) == 1


async def test_old_entry_is_revalidated_once_after_a_restart(harness: CacheHarness) -> None:
    await harness.get()
    await harness.restart()
    harness.clock.elapsed_s = 301
    assert (await harness.get()).origin == "disk"
    await harness.restart()
    assert (await harness.get()).origin == "disk"
    assert [revision for _, revision in harness.loader.calls] == [None, "1"]


async def test_damaged_block_on_disk_is_loaded_again(harness: CacheHarness) -> None:
    await harness.get()
    await harness.restart()
    (path,) = harness.folder.rglob("block")
    path.write_bytes(b"damaged")
    assert (await harness.get()).origin == "download"


async def test_lost_block_is_put_into_memory_again(harness: CacheHarness) -> None:
    first = await harness.get()
    assert (await harness.get(lost=("another",))).handle == first.handle
    lost = (first.handle.id,)
    second = await harness.get(lost=lost)
    assert (second.origin, second.handle.block) == ("disk", 1)
    assert (await harness.get(lost=lost)).handle == second.handle, (
        "a block that several callers report as lost is replaced once"
    )
    assert len(harness.loader.calls) == 1


async def test_lora_evicted_from_memory_is_read_from_disk(tmp_path: Path) -> None:
    block_bytes = pack(make_weights(1)).nbytes
    settings = LoraSettings.model_validate({"cache": {"memory_bytes": int(1.5 * block_bytes)}})
    harness = CacheHarness(tmp_path, settings)
    origins: Mapping[str, list[str]] = {"first": [], "second": []}
    for _ in range(2):
        for content, name in enumerate(origins):
            harness.loader.content = content
            origins[name].append((await harness.get(ReplicateModel("me", name, "0123abcd"))).origin)
    assert origins == {"first": ["download", "disk"], "second": ["download", "disk"]}


async def test_close_cancels_waiting_callers(harness: CacheHarness) -> None:
    harness.loader.may_continue.clear()
    task = asyncio.create_task(harness.get())
    await asyncio.sleep(0)
    await harness.manager.close()
    with pytest.raises(asyncio.CancelledError):
        await task
