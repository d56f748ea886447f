"""The order of requests in the scheduler, by deadlines."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from torch import Tensor

from serve.engine.checkpoint import Checkpoint
from serve.engine.denoiser import Denoiser
from serve.engine.request import Completed, GenerationRequest
from serve.engine.request_state import ImageState
from serve.engine.scheduler import Scheduler
from serve.engine.step_costs import StepCosts
from serve.engine.watchdog import Watchdog
from serve.settings import PoolSettings
from tests.unit.engine.faults import Faulty
from tests.unit.engine.requests import RequestRecorder, UnmeasuredCosts, make_request

SMALL, LARGE = (64, 64), (96, 64)
TOKENS = {16: "small", 24: "large"}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The work of the test; each step of a batch is added to it."""
    work: list[str] = []
    step = Denoiser.step

    def note_step(denoiser: Denoiser, images: list[ImageState]) -> list[Tensor]:
        work.append(f"step {TOKENS[images[0].grid.tokens]}")
        return step(denoiser, images)

    monkeypatch.setattr(Denoiser, "step", note_step)
    return work


def _recorded(checkpoint: Checkpoint, work: list[str]) -> Checkpoint:
    """Adds each call of the VAE to `work`."""

    def note(kind: str, tokens: int) -> bool:
        work.append(f"{kind} {TOKENS[tokens]}")
        return False

    def encode(pixels: Tensor) -> bool:
        return note("encode", pixels[0, 0].numel() // 256)

    def decode(latents: Tensor, **_: Any) -> bool:
        return note("decode", latents[0, 0].numel() // 4)

    vae: Any = Faulty(Faulty(checkpoint.vae, encode, RuntimeError(), "encode"), decode, RuntimeError(), "decode")
    return replace(checkpoint, vae=vae)


def _run(
    checkpoint: Checkpoint, work: list[str], arrivals: Sequence[tuple[int, GenerationRequest]], costs: StepCosts
) -> list[str]:
    """The work in its order. Arrivals are iterations before which a request is added; all have the same age."""
    scheduler = Scheduler(_recorded(checkpoint, work), PoolSettings(model=""), Watchdog(), costs)
    recorders = [RequestRecorder(number, request) for number, (_, request) in enumerate(arrivals)]
    for recorder in recorders:
        recorder.state.submitted_s = 0
    for iteration in range(100):
        new = [recorder.state for recorder, (at, _) in zip(recorders, arrivals, strict=True) if at == iteration]
        scheduler.add(new, ())
        scheduler.step()
    assert all(isinstance(recorder.final_event, Completed) for recorder in recorders)
    return work


def test_short_request_overtakes_a_long_one_at_the_next_step(checkpoint: Checkpoint, steps: list[str]) -> None:
    arrivals = [(0, make_request(size=LARGE, steps=5)), (2, make_request(size=SMALL, steps=2))]
    work = _run(checkpoint, steps, arrivals, UnmeasuredCosts())
    small = ["step small", "step small", "decode small"]
    assert work == ["step large"] * 2 + small + ["step large"] * 3 + ["decode large"]


def test_long_request_waits_for_a_request_that_is_almost_done(checkpoint: Checkpoint, steps: list[str]) -> None:
    arrivals = [(0, make_request(size=LARGE, steps=4)), (3, make_request(size=SMALL, steps=9))]
    assert _run(checkpoint, steps, arrivals, UnmeasuredCosts())[:5] == ["step large"] * 4 + ["decode large"]


def test_finished_images_are_decoded_before_work_of_later_deadlines(checkpoint: Checkpoint, steps: list[str]) -> None:
    """Three short requests finish in one batch. None waits for a step of the long one."""
    arrivals = [(0, make_request(size=LARGE, steps=5))]
    arrivals += [(1, make_request(size=SMALL, steps=2, seeds=(seed,))) for seed in range(3)]
    work = _run(checkpoint, steps, arrivals, UnmeasuredCosts())
    assert work[:6] == ["step large", "step small", "step small", "decode small", "decode small", "decode small"]
    assert work[6:] == ["step large"] * 4 + ["decode large"]


def test_input_image_is_encoded_when_its_request_is_first(checkpoint: Checkpoint, steps: list[str]) -> None:
    arrivals = [
        (0, make_request(size=SMALL, steps=3)),
        (1, make_request("image_to_image", size=LARGE, steps=4, strength=0.5)),
    ]
    work = _run(checkpoint, steps, arrivals, UnmeasuredCosts())
    assert work[:4] == ["step small"] * 3 + ["decode small"]
    assert work[4:] == ["encode large", "step large", "step large", "decode large"]


@pytest.mark.parametrize(("batch_s", "passes"), [(1.5, 3), (2.0, 6)])
def test_requests_share_passes_only_where_that_is_cheaper(
    checkpoint: Checkpoint, steps: list[str], batch_s: float, passes: int
) -> None:
    class FixedCosts(UnmeasuredCosts):
        def __init__(self) -> None:
            super().__init__()
            for images, seconds in ((1, 1.0), (2, batch_s)):
                for _ in range(2):
                    StepCosts.record(self, "step", 16, seconds, images)

    arrivals = [(0, make_request(size=SMALL, steps=3)) for _ in range(2)]
    assert _run(checkpoint, steps, arrivals, FixedCosts()).count("step small") == passes


def test_costs_are_measured_by_size_and_images(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances by a second whenever it is read."""
    costs, seconds = StepCosts(), count()
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    scheduler = Scheduler(checkpoint, PoolSettings(model=""), Watchdog(), costs, lambda: float(next(seconds)))
    recorder = RequestRecorder(0, make_request("image_to_image", size=SMALL, steps=4, seeds=(1, 2)))
    scheduler.add([recorder.state], ())
    while scheduler.has_work:
        scheduler.step()
    assert costs.estimate_s("step", 16, 2) == 1
    assert [costs.estimate_s(kind, 16) for kind in ("decode", "encode_image")] == [1, 1]


def test_failed_pass_is_not_measured(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    costs = StepCosts()
    monkeypatch.setattr(Denoiser, "step", fail)
    recorder = RequestRecorder(0, make_request(size=SMALL))
    unmeasured_s = costs.estimate_s("step", 16)
    scheduler = Scheduler(checkpoint, PoolSettings(model=""), Watchdog(), costs)
    scheduler.add([recorder.state], ())
    scheduler.step()
    assert not scheduler.has_work
    assert costs.estimate_s("step", 16) == unmeasured_s
