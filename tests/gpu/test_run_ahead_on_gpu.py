"""Queueing passes ahead on a GPU: equal images, cancellation within one step, and no more passes than steps."""

from queue import SimpleQueue

import numpy as np
import pytest
import torch

from serve.engine import device
from serve.engine.engine import Engine
from serve.engine.request import Canceled, Completed, EngineEvent, FinalEvent, GenerationRequest, ImageReady
from serve.events import StepDone
from serve.model_specs import ImageArray
from serve.settings import PoolSettings
from tests.gpu.helpers import DEVICE, SIZE, LoadOnGpu
from tests.unit.engine.requests import make_request

TIMEOUT_S = 120
STEPS = 200


def _generate(load_on_gpu: LoadOnGpu, requests: list[GenerationRequest], run_ahead: bool) -> list[list[ImageArray]]:
    """The images of each request. All are submitted at once."""
    pool = PoolSettings(model="dev", device=DEVICE, run_ahead=run_ahead, disable_batching=True)
    engine = Engine(load_on_gpu(), pool)
    engine.start()
    try:
        queues: list[SimpleQueue[EngineEvent]] = [SimpleQueue() for _ in requests]
        for request, queue in zip(requests, queues, strict=True):
            engine.submit(request, queue.put)
        return [_images(queue) for queue in queues]
    finally:
        engine.stop()


def _images(queue: "SimpleQueue[EngineEvent]") -> list[ImageArray]:
    images = []
    while not isinstance(event := queue.get(timeout=TIMEOUT_S), FinalEvent):
        if isinstance(event, ImageReady):
            images.append(event.to_host())
    assert isinstance(event, Completed)
    return images


def test_images_are_equal_with_and_without_run_ahead(load_on_gpu: LoadOnGpu) -> None:
    requests = [
        make_request(size=SIZE, seeds=(1, 2), steps=8),
        make_request("inpainting", size=SIZE, seeds=(4,), steps=6),
        make_request(size=(128, 128), seeds=(5,), steps=5),
    ]
    ahead, awaited = (_generate(load_on_gpu, requests, run_ahead) for run_ahead in (True, False))
    for images, expected in zip(ahead, awaited, strict=True):
        assert len(images) == len(expected) > 0
        assert all(np.array_equal(image, other) for image, other in zip(images, expected, strict=True))


def test_cancelled_request_takes_at_most_one_step_more(load_on_gpu: LoadOnGpu) -> None:
    engine = Engine(load_on_gpu(), PoolSettings(model="dev", device=DEVICE))
    engine.start()
    events: SimpleQueue[EngineEvent] = SimpleQueue()
    steps_at_cancel: list[int] = []

    def listener(event: EngineEvent) -> None:
        if isinstance(event, StepDone) and event.step == 5:
            engine.cancel(token)
            steps_at_cancel.append(engine.stats.batches)
        events.put(event)

    try:
        token = engine.submit(make_request(size=SIZE, steps=STEPS), listener)
        while not isinstance(event := events.get(timeout=TIMEOUT_S), FinalEvent):
            pass
        assert isinstance(event, Canceled)
        # Pass 6 was queued before the event of pass 5.
        assert engine.stats.batches <= steps_at_cancel[0] + 1
    finally:
        engine.stop()


def test_event_follows_the_work_queued_before_it(load_on_gpu: LoadOnGpu) -> None:
    gpu = load_on_gpu().device
    start = device.record_event(gpu)
    values = torch.ones(4096, 4096, device=gpu)
    for _ in range(50):
        values = values @ values * 1e-4
    end = device.record_event(gpu)
    end.synchronize()
    assert end.query()
    assert end.seconds_since(start) > 0


@pytest.mark.parametrize("run_ahead", [True, False])
def test_engine_stops_while_a_request_runs(load_on_gpu: LoadOnGpu, run_ahead: bool) -> None:
    engine = Engine(load_on_gpu(), PoolSettings(model="dev", device=DEVICE, run_ahead=run_ahead))
    engine.start()
    events: SimpleQueue[EngineEvent] = SimpleQueue()
    engine.submit(make_request(size=SIZE, steps=STEPS), events.put)
    while not isinstance(events.get(timeout=TIMEOUT_S), StepDone):
        pass
    engine.stop()
    assert not engine.health.alive
