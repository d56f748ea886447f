"""Fakes for unit tests: pool, LoRA source, URL fetcher and clock, with sample events, plans and predictions."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from numpy import uint8
from numpy.typing import NDArray

from serve.errors import FetchFailed
from serve.events import Event, Finished, ImageFinished, Started, StepDone
from serve.generation_plan import GenerationPlan
from serve.lora.reference import CacheHandle, LoraMetadata, Reference, ResolvedLora
from serve.predictions.prediction import Prediction

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

WEBP = b"RIFF....WEBP"


def drawn(image: int) -> ImageFinished:
    return ImageFinished(image, WEBP)


DONE = Finished({"queue": 1.0, "text": 2.0, "denoise": 30.0}, mean_batch=2.5)
ONE_IMAGE: tuple[Event, ...] = (Started(), StepDone(0, 1, 2), StepDone(0, 2, 2), drawn(0), DONE)
"""All events of a prediction of one image in two steps."""


class FakePool:
    """A pool that yields scripted events, and raises the exceptions among them.

    With `going=False`, `generate` waits for the event `going` before the first event. With `slow_to_stop`, it waits for
    the event `let_go` before it returns.
    """

    def __init__(self, events: Sequence[Event | BaseException], going: bool = True, slow_to_stop: bool = False) -> None:
        self.events = events
        self.going = asyncio.Event()
        self.calls: list[tuple[GenerationPlan, NDArray[uint8] | None, NDArray[uint8] | None]] = []
        """The plan, image and mask of each call of `generate`."""
        self.loras: list[Sequence[ResolvedLora[Any]]] = []
        """The LoRAs of each call."""
        self.stopped = 0
        """How many calls have returned or were closed."""
        self.let_go = asyncio.Event()
        if going:
            self.going.set()
        if not slow_to_stop:
            self.let_go.set()

    async def generate(
        self,
        plan: GenerationPlan,
        image: NDArray[uint8] | None,
        mask: NDArray[uint8] | None,
        loras: Sequence[ResolvedLora[Any]],
    ) -> AsyncGenerator[Event, None]:
        self.calls.append((plan, image, mask))
        self.loras.append(loras)
        try:
            await self.going.wait()
            for event in self.events:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            await self.let_go.wait()
            self.stopped += 1


class FakeLoras:
    """A LoRA source that resolves every reference, or raises the exception in `failures` for its display name.

    The key of a LoRA is its display name and the number of times it was resolved, such as `owner/name 1`. With
    `going=False`, `get` waits for the event `going`.
    """

    def __init__(self, failures: Mapping[str, Exception] | None = None, going: bool = True) -> None:
        self._failures = failures or {}
        self._counts: dict[str, int] = {}
        self.asked: list[tuple[tuple[str, ...], str, tuple[str, ...]]] = []
        """The display names, pool and lost keys of each call of `get`."""
        self.going = asyncio.Event()
        if going:
            self.going.set()

    async def get(
        self, references: Mapping[str, Reference], pool: str, lost: Collection[str] = ()
    ) -> dict[str, ResolvedLora[Any]]:
        self.asked.append((tuple(each.display_name for each in references.values()), pool, tuple(lost)))
        await self.going.wait()
        return {key: self._resolve(reference.display_name) for key, reference in references.items()}

    def _resolve(self, display_name: str) -> ResolvedLora[Any]:
        if display_name in self._failures:
            raise self._failures[display_name]
        count = self._counts[display_name] = self._counts.get(display_name, 0) + 1
        metadata = LoraMetadata(f"{display_name} {count}", size_bytes=5_000_000, rank=16)
        return ResolvedLora(
            metadata,
            CacheHandle(None, f"copy {count} of {display_name}"),
            "download",
            fetched_bytes=10_000_000,
            fetch_s=0.5,
            check_s=0.25,
        )


class FakeFetcher:
    """A URL fetcher that returns the contents of `files` by URL.

    No fetch returns until `together` of them are in progress.
    """

    def __init__(self, files: Mapping[str, bytes], together: int = 1) -> None:
        self._files = files
        self._barrier = asyncio.Barrier(together)
        self.fetched: list[str] = []
        """The URL of each call of `fetch`."""

    async def fetch(self, text: str) -> bytes:
        self.fetched.append(text)
        await self._barrier.wait()
        if text not in self._files:
            raise FetchFailed(text, "its server answered 404 Not Found")
        return self._files[text]


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
