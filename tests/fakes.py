"""Stand-ins for what a unit test does not run: a pool, a clock, and the values that they are asked with."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta

from numpy import uint8
from numpy.typing import NDArray

from serve.events import Event
from serve.plan import Plan
from serve.predictions.record import Prediction

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class FakePool:
    """A pool that tells a script of events. It stands still before the first, until `going` is set."""

    def __init__(self, events: Sequence[Event | Exception], going: bool = True) -> None:
        self.events = events
        self.going = asyncio.Event()
        self.calls: list[tuple[Plan, NDArray[uint8] | None, NDArray[uint8] | None]] = []
        self.stopped = 0
        if going:
            self.going.set()

    async def generate(
        self, plan: Plan, picture: NDArray[uint8] | None, mask: NDArray[uint8] | None
    ) -> AsyncGenerator[Event, None]:
        self.calls.append((plan, picture, mask))
        try:
            await self.going.wait()
            for event in self.events:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.stopped += 1


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
        mode="text_to_image",
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
