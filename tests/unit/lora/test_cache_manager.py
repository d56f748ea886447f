"""What is brought, what is at hand, and what is asked again, with a loader that counts."""

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
from serve.lora.reference import Reference, ReplicateModel, ResolvedLora
from serve.lora.weights import Block, LoraWeights, LowRank, pack, unpack
from serve.settings import LoraSettings
from tests.fakes import FakeClock
from tests.unit.lora.geometries import TINY

MUTABLE, PINNED = ReplicateModel("me", "ink"), ReplicateModel("me", "ink", "0123abcd")
OTHER = replace(TINY, guidance_embeds=not TINY.guidance_embeds)
SETTINGS = LoraSettings(revalidate_after_s=300, failure_ttl_s=30)


def lora(number: int) -> LoraWeights:
    return LoraWeights(
        {"x_embedder": LowRank(torch.full((2, 3), float(number)), torch.ones(4, 2))}, {}, ("odd: unknown",)
    )


class FakeLoader:
    """Loads the LoRA of that number, or fails; while `going` is not set it takes its time."""

    def __init__(self) -> None:
        self.number = 1
        self.failure: Exception | None = None
        self.asked: list[tuple[Reference, str | None]] = []
        self.going = asyncio.Event()
        self.going.set()

    async def load(
        self, reference: Reference, geometry: ModelGeometry, known_revision: str | None = None
    ) -> LoadedLora | None:
        self.asked.append((reference, known_revision))
        await self.going.wait()
        if self.failure:
            raise self.failure
        if known_revision == str(self.number):
            return None
        weights = lora(self.number)
        return LoadedLora(weights, pack(weights), str(self.number), fetched_bytes=10, fetch_s=1.0, check_s=2.0)


class Bench:
    """A library with a clock of its own; `puts` are the blocks in memory, in order."""

    def __init__(self, folder: Path, settings: LoraSettings = SETTINGS) -> None:
        self.clock, self.loader = FakeClock(), FakeLoader()
        self.folder, self.settings = folder, settings
        self.puts: list[Block] = []
        self.library = self._open()

    def _open(self) -> LoraCacheManager[int]:
        return LoraCacheManager(self.loader, DiskCache(self.folder, 10**6), self._put, self.settings, self.clock)

    def _put(self, block: Block) -> int:
        self.puts.append(block)
        return len(self.puts) - 1

    async def restart(self) -> None:
        await self.library.close()
        self.library = self._open()

    async def get(self, reference: Reference = MUTABLE, lost: tuple[str, ...] = ()) -> ResolvedLora[int]:
        return await self.library.get(reference, TINY, lost)

    def number(self, brought: ResolvedLora[int]) -> float:
        """Which LoRA was brought."""
        return float(unpack(self.puts[brought.handle.block]).transformer["x_embedder"].down[0, 0])


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_the_first_who_asks_brings_it_and_the_next_finds_it(bench: Bench) -> None:
    first, second = await bench.get(), await bench.get()
    assert (first.origin, first.fetched_bytes, first.fetch_s, first.check_s) == ("download", 10, 1.0, 2.0)
    assert (second.origin, second.fetched_bytes, second.fetch_s) == ("memory", 0, 0.0)
    assert (first.metadata.rank, first.metadata.unapplied) == (2, ("odd: unknown",))
    assert (first.metadata, first.handle, len(bench.loader.asked)) == (second.metadata, second.handle, 1)


async def test_a_hundred_who_ask_at_once_cause_one_load(bench: Bench) -> None:
    bench.loader.going.clear()
    waiting = [asyncio.create_task(bench.get()) for _ in range(100)]
    await asyncio.sleep(0)
    bench.loader.going.set()
    brought = await asyncio.gather(*waiting)
    assert len(bench.loader.asked) == len(bench.puts) == 1
    assert sorted(each.origin for each in brought) == ["download"] + 99 * ["memory"]


@pytest.mark.parametrize("leaving", [0, 1])
async def test_who_leaves_takes_nothing_from_the_others(bench: Bench, leaving: int) -> None:
    bench.loader.going.clear()
    waiting = [asyncio.create_task(bench.get()) for _ in range(2)]
    await asyncio.sleep(0)
    waiting.pop(leaving).cancel()
    await asyncio.sleep(0)
    bench.loader.going.set()
    assert bench.number(await waiting[0]) == 1
    assert len(bench.loader.asked) == 1


async def test_equal_weights_lie_in_memory_once_whoever_published_them(bench: Bench) -> None:
    brought = [await bench.get(reference) for reference in (MUTABLE, PINNED)]
    assert len(bench.loader.asked) == 2
    assert len(bench.puts) == 1
    assert brought[0].metadata.key == brought[1].metadata.key


async def test_models_of_other_shapes_have_their_own(bench: Bench) -> None:
    await bench.library.get(PINNED, TINY)
    await bench.library.get(PINNED, OTHER)
    assert len(bench.loader.asked) == 2


@pytest.mark.parametrize(("reference", "asked"), [(MUTABLE, [None, "1"]), (PINNED, [None])])
async def test_only_what_may_change_is_looked_up_again_and_only_when_it_is_old(
    bench: Bench, reference: Reference, asked: list[str | None]
) -> None:
    for age_s in (0, 299, 2, 299):
        bench.clock.elapsed_s += age_s
        assert bench.number(await bench.get(reference)) == 1
    assert [revision for _, revision in bench.loader.asked] == asked


async def test_what_has_changed_replaces_what_was_known(bench: Bench) -> None:
    old = await bench.get()
    bench.loader.number = 2
    bench.clock.elapsed_s = 301
    new = await bench.get()
    assert (bench.number(old), bench.number(new), new.origin) == (1, 2, "download")
    assert bench.number(await bench.get()) == 2


async def test_what_cannot_be_looked_up_again_is_used_as_it_was(bench: Bench) -> None:
    await bench.get()
    bench.clock.elapsed_s = 301
    bench.loader.failure = FetchFailed("me/ink", "its server does not answer")
    assert [(await bench.get()).stale for _ in range(2)] == [True, False]
    assert len(bench.loader.asked) == 2, "who asks next does not wait for that server too"
    bench.clock.elapsed_s += 31
    bench.loader.failure, bench.loader.number = None, 2
    assert bench.number(await bench.get()) == 2


async def test_what_has_become_no_lora_is_refused(bench: Bench) -> None:
    await bench.get()
    bench.clock.elapsed_s = 301
    bench.loader.failure = InvalidLora("me/ink", "it is a web page")
    with pytest.raises(InvalidLora, match="web page"):
        await bench.get()


@pytest.mark.parametrize("failure", [FetchFailed("me/ink", "404"), InvalidLora("me/ink", "rank 4096")])
async def test_a_failure_is_told_again_at_once_for_a_while(bench: Bench, failure: Exception) -> None:
    bench.loader.failure = failure
    told = []
    for age_s in (0, 29, 2):
        bench.clock.elapsed_s += age_s
        with pytest.raises(type(failure)) as caught:
            await bench.get()
        told.append(str(caught.value))
    assert told == 3 * [str(failure)]
    assert len(bench.loader.asked) == 2
    bench.loader.failure = None
    bench.clock.elapsed_s += 31
    assert bench.number(await bench.get()) == 1


async def test_our_own_fault_is_not_remembered(bench: Bench) -> None:
    bench.loader.failure = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        await bench.get()
    bench.loader.failure = None
    assert bench.number(await bench.get()) == 1


async def test_a_restart_costs_no_load(bench: Bench) -> None:
    first = await bench.get()
    await bench.restart()
    second = await bench.get()
    assert (second.origin, second.metadata, second.fetched_bytes) == ("disk", first.metadata, 0)
    assert len(bench.loader.asked) == 1
    assert bench.number(second) == 1


async def test_after_a_restart_what_is_old_is_looked_up_again_and_not_brought(bench: Bench) -> None:
    await bench.get()
    await bench.restart()
    bench.clock.elapsed_s = 301
    assert (await bench.get()).origin == "disk"
    await bench.restart()
    assert (await bench.get()).origin == "disk"
    assert [revision for _, revision in bench.loader.asked] == [None, "1"]


async def test_what_is_damaged_on_the_disk_is_brought_again(bench: Bench) -> None:
    await bench.get()
    await bench.restart()
    (path,) = bench.folder.rglob("block")
    path.write_bytes(b"damaged")
    assert (await bench.get()).origin == "download"


async def test_what_was_lost_is_put_into_memory_again(bench: Bench) -> None:
    first = await bench.get()
    assert (await bench.get(lost=("another",))).handle == first.handle
    lost = (first.handle.id,)
    second = await bench.get(lost=lost)
    assert (second.origin, second.handle.block) == ("disk", 1)
    assert (await bench.get(lost=lost)).handle == second.handle, "what others lost too was replaced already"
    assert len(bench.loader.asked) == 1


async def test_what_goes_from_memory_is_read_from_the_disk(tmp_path: Path) -> None:
    size = pack(lora(1)).nbytes
    bench = Bench(tmp_path, LoraSettings.model_validate({"cache": {"memory_bytes": int(1.5 * size)}}))
    origins: Mapping[str, list[str]] = {"ink": [], "pencil": []}
    for _ in range(2):
        for number, name in enumerate(origins):
            bench.loader.number = number
            origins[name].append((await bench.get(ReplicateModel("me", name, "0123abcd"))).origin)
    assert origins == {"ink": ["download", "disk"], "pencil": ["download", "disk"]}


async def test_closing_lets_nobody_wait_for_ever(bench: Bench) -> None:
    bench.loader.going.clear()
    waiting = asyncio.create_task(bench.get())
    await asyncio.sleep(0)
    await bench.library.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
