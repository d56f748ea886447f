"""The steps that are reported, and previews between the events of the engine."""

import asyncio
from typing import Any

from serve.engine.event_stream import STEP_EVENT_PERIOD_S, EventStream, StepThrottle
from serve.engine.request import Completed, GenerationRequest, Listener
from serve.engine.request_state import CancelToken
from serve.events import Preview, Started, StepDone
from tests.fakes import FakeClock


def _emitted_steps(steps: int, step_s: float, images: int = 1) -> list[tuple[int, int]]:
    """Image and step of the events that the throttle emits if all images take each step at the same time."""
    clock = FakeClock()
    throttle = StepThrottle(clock)
    emitted = []
    for step in range(1, steps + 1):
        emitted += [(image, step) for image in range(images) if throttle.should_emit(StepDone(image, step, steps))]
        clock.elapsed_s += step_s
    return emitted


def test_step_throttle_emits_all_slow_steps() -> None:
    assert _emitted_steps(4, step_s=STEP_EVENT_PERIOD_S) == [(0, 1), (0, 2), (0, 3), (0, 4)]


def test_step_throttle_emits_first_last_and_one_step_per_period() -> None:
    assert _emitted_steps(28, step_s=STEP_EVENT_PERIOD_S / 8) == [(0, 1), (0, 9), (0, 17), (0, 25), (0, 28)]


def test_step_throttle_emits_steps_of_every_image() -> None:
    """The progress of a prediction is that of its slowest image."""
    assert _emitted_steps(3, step_s=0, images=4) == [(image, step) for step in (1, 3) for image in range(4)]


class Engine:
    listener: Listener

    def submit(self, request: GenerationRequest, listener: Listener) -> CancelToken:
        self.listener = listener
        return CancelToken()

    def cancel(self, cancel_token: CancelToken) -> None:
        pass


async def test_previews_come_between_the_events_and_not_after_the_last_one() -> None:
    engine, request = Engine(), GenerationRequest("a cat", (64, 64), 2, (1,))
    stream = EventStream(engine, request)
    preview, completed = Preview(0, 1, 2, b"content"), Completed({}, 1.0)
    events: list[Any] = [Started(), StepDone(0, 1, 2)]
    for event in events:
        engine.listener(event)
    await asyncio.sleep(0)
    stream.add(preview)
    engine.listener(completed)
    await asyncio.sleep(0)
    stream.add(preview)
    assert [event async for event in stream] == [*events, preview, completed]
