"""Stand-ins for what a unit test does not run: a pool, a clock, and the values that they are asked with."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from numpy import uint8
from numpy.typing import NDArray

from serve.errors import FetchFailed
from serve.events import Event, Finished, ImageFinished, Started, StepDone
from serve.lora.reference import CacheHandle, LoraMetadata, Reference, ResolvedLora
from serve.plan import Plan
from serve.predictions.prediction import Prediction

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


WEBP = b"RIFF....WEBP"


def drawn(image: int) -> ImageFinished:
    return ImageFinished(image, WEBP)


DONE = Finished({"queue": 1.0, "text": 2.0, "denoise": 30.0}, mean_batch=2.5)
ONE_IMAGE: tuple[Event, ...] = (Started(), StepDone(0, 1, 2), StepDone(0, 2, 2), drawn(0), DONE)
"""The whole life of a prediction of one image in two steps."""


class FakePool:
    """A pool that tells a script of events, and raises the errors in it.

    It stands still before the first until `going` is set, and when it is closed until `let_go` is.
    """

    def __init__(self, events: Sequence[Event | BaseException], going: bool = True, slow_to_stop: bool = False) -> None:
        self.events = events
        self.going = asyncio.Event()
        self.calls: list[tuple[Plan, NDArray[uint8] | None, NDArray[uint8] | None]] = []
        self.loras: list[Sequence[ResolvedLora[Any]]] = []
        """Of each call."""
        self.stopped = 0
        self.let_go = asyncio.Event()
        if going:
            self.going.set()
        if not slow_to_stop:
            self.let_go.set()

    async def generate(
        self,
        plan: Plan,
        picture: NDArray[uint8] | None,
        mask: NDArray[uint8] | None,
        loras: Sequence[ResolvedLora[Any]],
    ) -> AsyncGenerator[Event, None]:
        self.calls.append((plan, picture, mask))
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
    """A cache with a LoRA for every reference but those that it was told to fail at, by what is shown of them.

    The key of their weights is what is shown of them, and how often they were brought.
    """

    def __init__(self, failures: Mapping[str, Exception] | None = None, going: bool = True) -> None:
        self._failures = failures or {}
        self._times: dict[str, int] = {}
        self.asked: list[tuple[tuple[str, ...], str, tuple[str, ...]]] = []
        """What was shown of the references, the pool, and what was lost."""
        self.going = asyncio.Event()
        if going:
            self.going.set()

    async def get(
        self, references: Mapping[str, Reference], pool: str, lost: Collection[str] = ()
    ) -> dict[str, ResolvedLora[Any]]:
        self.asked.append((tuple(each.display_name for each in references.values()), pool, tuple(lost)))
        await self.going.wait()
        return {key: self._bring(reference.display_name) for key, reference in references.items()}

    def _bring(self, shown: str) -> ResolvedLora[Any]:
        if shown in self._failures:
            raise self._failures[shown]
        times = self._times[shown] = self._times.get(shown, 0) + 1
        facts = LoraMetadata(f"{shown} {times}", size_bytes=5_000_000, rank=16)
        return ResolvedLora(
            facts,
            CacheHandle(None, f"copy {times} of {shown}"),
            "download",
            fetched_bytes=10_000_000,
            fetch_s=0.5,
            check_s=0.25,
        )


class FakeFetcher:
    """An internet of a few files. With `together` nothing arrives before so many were asked for."""

    def __init__(self, files: Mapping[str, bytes], together: int = 1) -> None:
        self._files = files
        self._barrier = asyncio.Barrier(together)
        self.fetched: list[str] = []

    async def fetch(self, text: str) -> bytes:
        self.fetched.append(text)
        await self._barrier.wait()
        if text not in self._files:
            raise FetchFailed(text, "its server answered 404 Not Found")
        return self._files[text]


class FakeClock:
    """A clock that only moves when it is told."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def __call__(self) -> float:
        return self.elapsed_s

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.elapsed_s)


def plan(images: int = 1, steps: int = 4, pool: str = "dev-bf16") -> Plan:
    return Plan(
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
