"""The order of the scheduler's work between two steps, cancellation, and failures."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from serve.engine.checkpoint import Checkpoint
from serve.engine.request import Canceled, Completed, EngineEvent, Failed, GenerationRequest
from serve.engine.request_state import RequestState
from serve.engine.scheduler import Scheduler
from serve.engine.watchdog import Watchdog
from serve.errors import EngineFailed
from serve.events import StepDone
from serve.settings import PoolSettings
from tests.logs import Logs
from tests.unit.engine.faults import Faulty, first_call, observed
from tests.unit.engine.requests import RequestRecorder, make_request, run_request, run_requests

INTERNAL_ERROR = RuntimeError("/srv/models/secret.safetensors at 0xdeadbeef")


def _observed(checkpoint: Checkpoint, observe: Callable[[str], object]) -> Checkpoint:
    """Calls `observe` with the kind of work before each call of a network."""
    vae = observed(checkpoint.vae, partial(observe, "encode"), "encode")
    return replace(
        checkpoint,
        t5=observed(checkpoint.t5, partial(observe, "text")),
        transformer=observed(checkpoint.transformer, partial(observe, "step"), "x_embedder"),
        vae=observed(vae, partial(observe, "decode"), "decode"),
    )


def _run_and_list_work(checkpoint: Checkpoint, arrivals: list[tuple[int, GenerationRequest]], **pool: Any) -> list[str]:
    kinds: list[str] = []
    run_requests(_observed(checkpoint, kinds.append), arrivals, **pool)
    return kinds


def test_with_turns_at_most_one_image_is_encoded_or_decoded_between_two_steps(checkpoint: Checkpoint) -> None:
    """Four images finish at once and two input images arrive while a fifth image is still being generated."""
    arrivals = [
        (0, make_request(seeds=(5,), steps=20)),
        (0, make_request(seeds=(1, 2, 3, 4), steps=2)),
        (3, make_request("image_to_image")),
        (3, make_request("inpainting")),
    ]
    kinds = _run_and_list_work(checkpoint, arrivals, scheduling_policy="turns")
    assert kinds.count("decode") == 4 + 1 + 2
    assert kinds.count("encode") == 2
    last_step = len(kinds) - kinds[::-1].index("step")
    work = " ".join("vae" if kind in ("encode", "decode") else kind for kind in kinds[:last_step] if kind != "text")
    assert "vae vae" not in work


def test_all_new_prompts_are_encoded_before_the_next_step(checkpoint: Checkpoint) -> None:
    arrivals = [(0, make_request(prompt=prompt, steps=2)) for prompt in ("a fish", "a star", "a fish")]
    kinds = _run_and_list_work(checkpoint, arrivals)
    assert kinds == ["text", "text", "step", "step", "decode", "decode", "decode"]


def test_input_image_is_encoded_once_for_all_images_of_a_request(checkpoint: Checkpoint) -> None:
    request = make_request("image_to_image", seeds=(1, 2, 3), steps=2, strength=1.0)
    kinds = _run_and_list_work(checkpoint, [(0, request)])
    assert kinds == ["text", "encode", "step", "step", "decode", "decode", "decode"]


@pytest.mark.parametrize("cancel_during", ["text", "encode", "step", "decode"])
def test_cancelled_request_has_no_further_work(checkpoint: Checkpoint, cancel_during: str) -> None:
    kinds: list[str] = []

    def cancel(kind: str) -> None:
        kinds.append(kind)
        if kind == cancel_during:
            recorder.state.cancel_token.cancelled = True

    recorder = RequestRecorder(0, make_request("image_to_image", steps=5, strength=1.0, seeds=(1, 2)))
    scheduler = Scheduler(_observed(checkpoint, cancel), PoolSettings(model=""), Watchdog())
    scheduler.add([recorder.state], ())
    while scheduler.has_work:
        scheduler.step()
    assert isinstance(recorder.final_event, Canceled)
    assert kinds.count(cancel_during) == 1
    assert kinds[-1] == cancel_during
    assert recorder.pixels == []


def test_sizes_take_turns(checkpoint: Checkpoint) -> None:
    recorders = [
        RequestRecorder(0, make_request(size=(96, 64), steps=9)),
        RequestRecorder(1, make_request(size=(64, 64), steps=3)),
    ]
    scheduler = Scheduler(checkpoint, PoolSettings(model="", scheduling_policy="turns"), Watchdog())
    scheduler.add([recorder.state for recorder in recorders], ())
    steps = []
    for _ in range(8):
        scheduler.step()
        steps.append(tuple(recorder.steps for recorder in recorders))
    assert steps == [(1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (5, 3)]
    scheduler.fail_all(EngineFailed())


@pytest.mark.parametrize(
    ("network", "method"), [("t5", "__call__"), ("clip", "__call__"), ("vae", "encode"), ("vae", "decode")]
)
def test_failed_work_fails_only_its_request(checkpoint: Checkpoint, network: str, method: str, logs: Logs) -> None:
    networks: dict[str, Any] = {network: Faulty(getattr(checkpoint, network), first_call(), INTERNAL_ERROR, method)}
    arrivals = [
        (0, make_request("image_to_image", seeds=(1, 2))),
        (0, make_request("inpainting", prompt="a fish", seeds=(3, 4))),
    ]
    _, (failed, other) = run_requests(replace(checkpoint, **networks), arrivals)
    assert isinstance(failed.final_event, Failed)
    assert isinstance(failed.final_event.error, EngineFailed)
    assert "secret" not in str(failed.final_event.error)
    assert "secret" in logs.text
    assert np.array_equal(other.pixels, run_request(checkpoint, arrivals[1][1]).pixels)


def test_raising_listener_cancels_only_its_request(checkpoint: Checkpoint) -> None:
    events: list[EngineEvent] = []

    def listener(event: EngineEvent) -> None:
        events.append(event)
        if isinstance(event, StepDone):
            raise RuntimeError("the event loop is closed")

    scheduler = Scheduler(checkpoint, PoolSettings(model=""), Watchdog())
    other_events: list[EngineEvent] = []
    requests = [
        RequestState(0, make_request(steps=9), listener),
        RequestState(1, make_request(steps=2), other_events.append),
    ]
    scheduler.add(requests, ())
    while scheduler.has_work:
        scheduler.step()
    assert isinstance(events[-1], Canceled)
    assert isinstance(other_events[-1], Completed)
    assert scheduler.executor.image_steps == 1 + 2
