"""What fails, fails alone: the job whose work it was, and nobody beside it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from serve.engine import batching, denoiser, device
from serve.engine.checkpoint import Checkpoint
from serve.engine.engine import Engine
from serve.engine.request import Canceled, Completed, EngineEvent, Failed, ImageReady
from serve.engine.request_state import RequestState
from serve.engine.scheduler import Scheduler
from serve.engine.watchdog import Watchdog
from serve.errors import EngineFailed
from serve.events import StepDone
from serve.settings import PoolSettings
from tests.logs import Logs
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.faults import Faulty, first_call
from tests.unit.engine.requests import make_request, run_request, run_requests

SECRET = RuntimeError("/srv/models/secret.safetensors at 0xdeadbeef")


@pytest.fixture
def checkpoint(checkpoints: Checkpoints) -> Checkpoint:
    return checkpoints.get("dev", "bf16")


def _with_fault(checkpoint: Checkpoint, part: str, **fault: Any) -> Checkpoint:
    parts: dict[str, Any] = {part: Faulty(getattr(checkpoint, part), **fault)}
    return replace(checkpoint, **parts)


@pytest.mark.parametrize(
    ("part", "method"), [("t5", "__call__"), ("clip", "__call__"), ("vae", "encode"), ("vae", "decode")]
)
def test_a_fault_in_one_jobs_work_ends_that_job_only(
    checkpoint: Checkpoint, part: str, method: str, logs: Logs
) -> None:
    faulty = _with_fault(checkpoint, part, condition=first_call(), error=SECRET, method=method)
    jobs = [
        (0, make_request("image_to_image", seeds=(1, 2))),
        (0, make_request("inpainting", prompt="a fish", seeds=(3,))),
    ]
    _, (failed, well) = run_requests(faulty, jobs)
    assert isinstance(failed.final_event, Failed)
    assert isinstance(failed.final_event.error, EngineFailed)
    assert "secret" not in str(failed.final_event.error)
    assert "secret" in logs.text
    assert np.array_equal(well.pixels, run_request(checkpoint, jobs[1][1]).pixels)


def test_the_image_that_breaks_a_pass_is_found_and_the_others_go_on(checkpoint: Checkpoint) -> None:
    def holds_the_bad_one(guidance: torch.Tensor, **_: Any) -> bool:
        return bool((guidance == 6.5).any())

    faulty = _with_fault(checkpoint, "transformer", condition=holds_the_bad_one, error=SECRET)
    jobs = [(0, make_request(guidance=guidance, seeds=(1, 2))) for guidance in (3.0, 6.5, 1.0)]
    loop, (first, bad, last) = run_requests(faulty, jobs)
    assert isinstance(bad.final_event, Failed)
    assert not any(isinstance(event, StepDone | ImageReady) for event in bad.events)
    for sitting, (_, job) in ((first, jobs[0]), (last, jobs[2])):
        assert np.array_equal(sitting.pixels, run_request(checkpoint, job).pixels)
    assert not loop.has_work


def test_a_batch_too_large_for_the_memory_is_drawn_in_halves(checkpoint: Checkpoint) -> None:
    def more_than_two(hidden_states: torch.Tensor, **_: Any) -> bool:
        return hidden_states.shape[0] > 2

    faulty = _with_fault(checkpoint, "transformer", condition=more_than_two, error=torch.OutOfMemoryError("full"))
    job = make_request(seeds=(1, 2, 3, 4), steps=3)
    loop, (sitting,) = run_requests(faulty, [(0, job)])
    assert np.array_equal(sitting.pixels, run_request(checkpoint, job).pixels)
    assert (loop.executor.batches, loop.executor.image_steps) == (2 * 3, 4 * 3)


def test_a_listener_that_fails_loses_its_job_only(checkpoint: Checkpoint) -> None:
    heard: list[EngineEvent] = []

    def listen(event: EngineEvent) -> None:
        heard.append(event)
        if isinstance(event, StepDone):
            raise RuntimeError("the event loop is closed")

    loop = Scheduler(checkpoint, PoolSettings(model=""), Watchdog())
    other: list[EngineEvent] = []
    loop.add([RequestState(0, make_request(steps=9), listen), RequestState(1, make_request(steps=2), other.append)], ())
    while loop.has_work:
        loop.step()
    assert isinstance(heard[-1], Canceled)
    assert isinstance(other[-1], Completed)
    assert loop.executor.image_steps == 1 + 2


def test_a_round_that_breaks_ends_the_jobs_in_work_and_the_thread_goes_on(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = iter((ZeroDivisionError,))

    def next_turn(*arguments: Any) -> Any:
        for error in rounds:
            raise error
        return batching.select_batch(*arguments)

    monkeypatch.setattr(denoiser, "select_batch", next_turn)
    engine = Engine(checkpoint, PoolSettings(model=""))
    engine.start()
    try:
        with pytest.raises(EngineFailed):
            engine.warm_up([(64, 64)])
        engine.warm_up([(64, 64)])
    finally:
        engine.stop()


def test_a_device_that_no_longer_answers_is_not_healthy(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(
        _with_fault(checkpoint, "vae", condition=first_call(), error=SECRET, method="encode"), PoolSettings(model="")
    )
    monkeypatch.setattr(device, "is_responsive", lambda _: False)
    engine.start()
    try:
        assert engine.health.healthy
        with pytest.raises(EngineFailed):
            engine.warm_up([(64, 64)])
        assert not engine.health.healthy
    finally:
        engine.stop()


def test_a_device_answers() -> None:
    assert device.is_responsive(torch.device("cpu"))
    assert not device.is_responsive(torch.device("cuda", 17))
