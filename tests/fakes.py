"""Fakes for unit tests: pool, LoRA cache, URL fetcher and clock, with sample events, plans and predictions."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from numpy import uint8
from numpy.typing import NDArray

from serve.errors import FetchFailed
from serve.events import Event, Finished, ImageFinished, Started, StepDone
from serve.generation_plan import GenerationPlan
from serve.lora.reference import Reference
from serve.lora.resolved_lora import CacheHandle, LoraMetadata, ResolvedLora
from serve.predictions.prediction import Prediction

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

WEBP = b"RIFF....WEBP"


def image_finished(image: int) -> ImageFinished:
    return ImageFinished(image, WEBP)


DONE = Finished({"queue": 1.0, "text": 2.0, "denoise": 30.0}, mean_batch=2.5, compute_dtype="float32")
ONE_IMAGE: tuple[Event, ...] = (Started(), StepDone(0, 1, 2), StepDone(0, 2, 2), image_finished(0), DONE)
"""All events of a prediction of one image in two steps."""


class FakePool:
    """A pool that yields scripted events, and raises the exceptions among them.

    With `may_start=False`, `generate` waits until the event `may_start` is set before it yields anything. With
    `slow_to_stop`, it waits until the event `may_stop` is set before it returns.
    """

    def __init__(
        self, events: Sequence[Event | BaseException], may_start: bool = True, slow_to_stop: bool = False
    ) -> None:
        self.events = events
        self.may_start = asyncio.Event()
        self.calls: list[tuple[GenerationPlan, NDArray[uint8] | None, NDArray[uint8] | None]] = []
        """The plan, image and mask of each call of `generate`."""
        self.loras: list[Sequence[ResolvedLora[Any]]] = []
        """The LoRAs of each call of `generate`."""
        self.log_ids: list[str] = []
        """The `log_id` of each call of `generate`."""
        self.stop_count = 0
        """How many calls have returned or were closed."""
        self.may_stop = asyncio.Event()
        if may_start:
            self.may_start.set()
        if not slow_to_stop:
            self.may_stop.set()

    async def generate(
        self,
        plan: GenerationPlan,
        image: NDArray[uint8] | None,
        mask: NDArray[uint8] | None,
        loras: Sequence[ResolvedLora[Any]],
        log_id: str,
    ) -> AsyncGenerator[Event, None]:
        self.calls.append((plan, image, mask))
        self.loras.append(loras)
        self.log_ids.append(log_id)
        try:
            await self.may_start.wait()
            for event in self.events:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            await self.may_stop.wait()
            self.stop_count += 1


class FakeLoraCache:
    """A LoRA cache that resolves every reference, or raises the exception that `failures` has for its display name.

    The weights key is the display name and the number of times it was resolved, such as `owner/name 1`; the id of the
    handle is `handle 1 of owner/name`. With `may_start=False`, `get` waits until the event `may_start` is set.
    """

    def __init__(self, failures: Mapping[str, Exception] | None = None, may_start: bool = True) -> None:
        self._failures = failures or {}
        self._counts: dict[str, int] = {}
        self.calls: list[tuple[tuple[str, ...], str, tuple[str, ...]]] = []
        """The display names, pool and lost handles of each call of `get`."""
        self.may_start = asyncio.Event()
        if may_start:
            self.may_start.set()

    async def get(
        self, references: Mapping[str, Reference], pool: str, lost: Collection[str] = ()
    ) -> dict[str, ResolvedLora[Any]]:
        self.calls.append((tuple(reference.display_name for reference in references.values()), pool, tuple(lost)))
        await self.may_start.wait()
        return {key: self._resolve(reference.display_name) for key, reference in references.items()}

    def _resolve(self, display_name: str) -> ResolvedLora[Any]:
        if display_name in self._failures:
            raise self._failures[display_name]
        count = self._counts[display_name] = self._counts.get(display_name, 0) + 1
        metadata = LoraMetadata(f"{display_name} {count}", size_bytes=5_000_000, rank=16)
        return ResolvedLora(
            metadata,
            CacheHandle(None, f"handle {count} of {display_name}"),
            "download",
            fetched_bytes=10_000_000,
            fetch_s=0.5,
            check_s=0.25,
        )


class FakeFetcher:
    """A URL fetcher that returns the contents of `files` by URL.

    No fetch returns until `concurrent` fetches are in progress.
    """

    def __init__(self, files: Mapping[str, bytes], concurrent: int = 1) -> None:
        self._files = files
        self._barrier = asyncio.Barrier(concurrent)
        self.fetched: list[str] = []
        """The URL of each call of `fetch`."""

    async def fetch(self, url: str) -> bytes:
        self.fetched.append(url)
        await self._barrier.wait()
        if url not in self._files:
            raise FetchFailed(url, "its server answered 404 Not Found")
        return self._files[url]


class FakeClock:
    """A clock that tests advance by changing `elapsed_s`."""

    def __init__(self, elapsed_s: float = 0.0) -> None:
        self.elapsed_s = elapsed_s

    def __call__(self) -> float:
        return self.elapsed_s

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.elapsed_s)


def plan(images: int = 1, steps: int = 4, pool: str = "dev-bf16") -> GenerationPlan:
    return GenerationPlan(
        pool=pool,
        prompt="a red sailboat",
        size=(512, 512),
        steps=steps,
        guidance=3.0,
        strength=None,
        seeds=tuple(range(7, 7 + images)),
        output_format="webp",
        output_quality=80,
        check_safety=True,
        max_megapixels=2.1,
    )


def prediction(prediction_id: str = "a" * 26) -> Prediction:
    return Prediction(
        id=prediction_id,
        model="black-forest-labs/flux-dev-lora",
        version="embedded",
        inputs={"prompt": "a red sailboat"},
        plan=plan(),
        created_at=NOON,
    )
