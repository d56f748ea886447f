"""Running ahead of a device that computes asynchronously: overlap, order of events, cancellation and failures."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from serve.engine import batch_executor, device
from serve.engine.batch_executor import QUEUE_MARGIN_S
from serve.engine.checkpoint import Checkpoint
from serve.engine.cuda_graphs import CudaGraphs
from serve.engine.request import Canceled, Completed, Failed, ImageReady
from serve.engine.request_state import RequestState
from serve.engine.scheduler import Scheduler
from serve.engine.step_costs import StepCosts
from serve.engine.watchdog import Watchdog
from serve.errors import EngineFailed
from serve.events import StepDone
from serve.settings import PoolSettings
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.fake_device import LAUNCH_S, PASS_S, QUEUE_S, FakeDevice
from tests.unit.engine.faults import Faulty, first_call, with_faulty_steps
from tests.unit.engine.loras import lora_requests, make_lora
from tests.unit.engine.requests import RequestRecorder, make_request, run_request
from tests.unit.engine.test_cuda_graphs import FakeCapture


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    fake = FakeDevice()
    fake.install(monkeypatch)
    return fake


def _costs(pass_s: float = PASS_S) -> StepCosts:
    """As after warm-up."""
    costs = StepCosts()
    for _ in range(2):
        costs.record("step", 24, pass_s)
    return costs


class RunAhead:
    """A scheduler on a fake device, with the waits of the engine's thread."""

    def __init__(self, checkpoint: Checkpoint, fake: FakeDevice, costs: StepCosts | None = None, **pool: Any) -> None:
        self.fake = fake
        self.watchdog = Watchdog(fake.clock)
        self.scheduler = Scheduler(
            checkpoint, PoolSettings(model="", **pool), self.watchdog, costs or _costs(), fake.clock
        )
        self.recorders: list[RequestRecorder] = []

    def add(self, **fields: Any) -> RequestRecorder:
        recorder = RequestRecorder(len(self.recorders), make_request(**fields))
        recorder.state.submitted_s = self.fake.clock.elapsed_s
        self.recorders.append(recorder)
        self.scheduler.add([recorder.state], ())
        return recorder

    def wait(self) -> None:
        """As `Engine._wait_for_work` without new work."""
        while (wait_s := self.scheduler.wait_s) > 0:
            self.fake.clock.elapsed_s += wait_s

    def run_to_end(self) -> None:
        while self.scheduler.has_work:
            self.wait()
            self.scheduler.step()


def test_device_is_never_idle_between_passes(checkpoint: Checkpoint, fake: FakeDevice) -> None:
    engine = RunAhead(checkpoint, fake)
    recorder = engine.add(steps=8)
    engine.run_to_end()
    assert isinstance(recorder.final_event, Completed)
    assert fake.idle_s == 0
    assert fake.clock.elapsed_s == pytest.approx(LAUNCH_S + 8 * PASS_S)


@pytest.mark.parametrize(("run_ahead", "asynchronous"), [(False, True), (True, False)])
def test_without_run_ahead_each_pass_is_awaited(
    checkpoint: Checkpoint, fake: FakeDevice, monkeypatch: pytest.MonkeyPatch, run_ahead: bool, asynchronous: bool
) -> None:
    monkeypatch.setattr(device, "is_asynchronous", lambda _: asynchronous)
    engine = RunAhead(checkpoint, fake, run_ahead=run_ahead)
    engine.add(steps=8)
    engine.run_to_end()
    assert engine.scheduler.wait_s == 0
    assert fake.idle_s == pytest.approx(7 * LAUNCH_S)
    assert fake.log[:4] == ["queue 1", "wait 1", "queue 2", "wait 2"]


def test_next_pass_is_queued_shortly_before_the_current_one_ends(checkpoint: Checkpoint, fake: FakeDevice) -> None:
    """So a cancellation, or a new request, comes in time for the next step."""
    engine = RunAhead(checkpoint, fake)
    engine.add(steps=6)
    slack_s: list[float] = []
    fake.on_queue = lambda: slack_s.append(fake.busy_until_s - fake.clock.elapsed_s)
    engine.run_to_end()
    assert all(QUEUE_S <= slack <= QUEUE_S + 2 * QUEUE_MARGIN_S for slack in slack_s[3:])


def test_events_of_a_pass_follow_its_end(checkpoint: Checkpoint, fake: FakeDevice) -> None:
    engine = RunAhead(checkpoint, fake)
    times_s: list[tuple[int, float]] = []

    def listener(event: Any) -> None:
        if isinstance(event, StepDone):
            times_s.append((event.step, fake.clock.elapsed_s))

    engine.scheduler.add([RequestState(0, make_request(steps=4), listener)], ())
    engine.run_to_end()
    assert [step for step, _ in times_s] == [1, 2, 3, 4]
    assert [at_s for _, at_s in times_s] == pytest.approx([LAUNCH_S + PASS_S * step for step in (1, 2, 3, 4)])
    assert fake.log == ["queue 1", "queue 2", "wait 1", "queue 3", "wait 2", "queue 4", "wait 3", "wait 4"]


def test_image_is_decoded_after_its_last_pass(checkpoint: Checkpoint, fake: FakeDevice) -> None:
    engine = RunAhead(checkpoint, fake)
    short, long = engine.add(steps=1), engine.add(steps=3)
    engine.run_to_end()
    for recorder, steps in ((short, 1), (long, 3)):
        kinds = [type(event) for event in recorder.events if isinstance(event, StepDone | ImageReady)]
        assert kinds == [StepDone] * steps + [ImageReady]


def test_images_are_those_of_a_synchronous_device(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[dict[str, Any]] = [
        {"mode": "inpainting", "seeds": (1, 2)},
        {"steps": 3, "size": (64, 64)},
    ]
    expected = [run_request(checkpoint, make_request(**fields)).pixels for fields in requests]
    fake = FakeDevice()
    fake.install(monkeypatch)
    engine = RunAhead(checkpoint, fake)
    recorders = [engine.add(**fields) for fields in requests]
    engine.run_to_end()
    for recorder, pixels in zip(recorders, expected, strict=True):
        assert np.array_equal(recorder.pixels, pixels)


def test_cancellation_takes_effect_within_one_step(checkpoint: Checkpoint, fake: FakeDevice) -> None:
    """It comes while pass 3 is computed, and before pass 4 is queued."""
    engine = RunAhead(checkpoint, fake)
    cancelled, other = engine.add(steps=50, seeds=(1,)), engine.add(steps=50, seeds=(2,), size=(64, 64))
    other.state.submitted_s = 1000
    for _ in range(3):
        engine.wait()
        engine.scheduler.step()
    assert fake.passes == 3
    cancelled.state.cancel_token.cancelled = True
    engine.wait()
    engine.scheduler.step()
    assert isinstance(cancelled.final_event, Canceled)
    assert cancelled.steps == 3
    assert fake.clock.elapsed_s == pytest.approx(LAUNCH_S + 3 * PASS_S)
    assert not isinstance(other.events[-1], Canceled)
    assert fake.passes == 4


def test_cancelled_request_ends_when_the_device_no_longer_works_on_it(checkpoint: Checkpoint, fake: FakeDevice) -> None:
    engine = RunAhead(checkpoint, fake)
    recorder = engine.add(steps=50)
    engine.scheduler.step()
    recorder.state.cancel_token.cancelled = True
    while engine.scheduler.has_work:
        assert not recorder.events or not isinstance(recorder.final_event, Canceled)
        engine.scheduler.step()
    assert isinstance(recorder.final_event, Canceled)
    assert fake.passes == 1
    assert fake.clock.elapsed_s >= fake.busy_until_s


def test_new_request_runs_in_the_next_pass(checkpoint: Checkpoint, fake: FakeDevice) -> None:
    engine = RunAhead(checkpoint, fake)
    running = engine.add(steps=50)
    engine.scheduler.step()
    new = engine.add(size=(64, 64), steps=1)
    engine.run_to_end()
    assert isinstance(new.final_event, Completed)
    assert isinstance(running.final_event, Completed)
    assert fake.log[:4] == ["queue 1", "wait 1", "queue 2", "wait 2"]


@pytest.mark.parametrize("failing_pass", [1, 2, 4])
def test_failure_on_the_device_fails_the_requests_of_the_pass(
    checkpoint: Checkpoint, fake: FakeDevice, monkeypatch: pytest.MonkeyPatch, failing_pass: int
) -> None:
    monkeypatch.setattr(device, "is_responsive", lambda _: failing_pass == 4)
    fake.failing_passes = {failing_pass}
    engine = RunAhead(checkpoint, fake)
    recorder = engine.add(steps=4)
    engine.run_to_end()
    assert isinstance(recorder.final_event, Failed)
    assert isinstance(recorder.final_event.error, EngineFailed)
    assert recorder.steps == failing_pass - 1
    assert engine.scheduler.device_lost == (failing_pass != 4)


def test_failure_when_a_pass_is_queued_is_retried_in_halves(checkpoint: Checkpoint, fake: FakeDevice) -> None:
    """The second pass fails once; its halves follow while the first one is computed."""
    engine = RunAhead(checkpoint, fake)
    recorder = engine.add(steps=3, seeds=(1, 2))
    calls = iter((None, MemoryError()))

    def fail_once() -> None:
        for error in calls:
            if error is not None:
                raise error
            return

    fake.on_queue = fail_once
    engine.run_to_end()
    assert isinstance(recorder.final_event, Completed)
    assert recorder.final_event.mean_batch == (2 + 1 + 1 + 2) / 4
    assert recorder.steps == 6
    assert fake.passes == 4


def test_passes_are_awaited_only_for_loras_that_are_copied(checkpoints: Checkpoints, fake: FakeDevice) -> None:
    """The device has slots for one LoRA: `a` is loaded, `b` waits until the requests with `a` have ended."""
    checkpoint = checkpoints.load("dev", "bf16", lora_bytes=2**19)
    rank = checkpoint.lora_slots.count
    loras = {name: make_lora(checkpoint, seed, rank, "attn") for seed, name in enumerate("ab")}
    engine = RunAhead(checkpoint, fake)
    engine.add(steps=6, loras=lora_requests(a=1.0), weights=loras)
    engine.scheduler.step()
    engine.scheduler.step()
    engine.add(steps=4, size=(64, 64), loras=lora_requests(a=0.5), weights=loras, prompt="a red sailboat")
    waiting = engine.add(steps=1, loras=lora_requests(b=1.0), weights=loras)
    before = len(fake.log)
    for _ in range(2):
        engine.scheduler._load_loras()
    assert fake.log[before:] == []
    assert engine.recorders[1].state.active_loras is not None
    assert waiting.state.active_loras is None
    engine.run_to_end()
    assert all(isinstance(recorder.final_event, Completed) for recorder in engine.recorders)


@pytest.mark.parametrize(("error", "calls"), [(torch.OutOfMemoryError("full"), 1), (RuntimeError("no kernel"), 0)])
@pytest.mark.parametrize("stage", ["step", "decode"])
def test_memory_is_freed_after_running_out_of_it(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, error: Exception, calls: int, stage: str
) -> None:
    cleared: list[int] = []
    if stage == "step":
        faulty = with_faulty_steps(checkpoint, first_call(), error)
    else:
        vae: Any = Faulty(checkpoint.vae, first_call(), error, "decode")
        faulty = replace(checkpoint, vae=vae)
    scheduler = Scheduler(faulty, PoolSettings(model=""), Watchdog())
    graphs = CudaGraphs(FakeCapture())
    monkeypatch.setattr(graphs, "clear", lambda: cleared.append(1))
    monkeypatch.setattr(scheduler.executor.denoiser, "_graphs", graphs)
    recorder = RequestRecorder(0, make_request(steps=1))
    scheduler.add([recorder.state], ())
    while scheduler.has_work:
        scheduler.step()
    assert isinstance(recorder.final_event, Failed)
    assert len(cleared) == calls


def test_pass_that_ends_early_is_noticed(checkpoint: Checkpoint, fake: FakeDevice) -> None:
    """The first estimate includes a compilation. The thread does not sleep that long."""
    engine = RunAhead(checkpoint, fake, _costs(pass_s=13.0))
    engine.add(steps=8)
    engine.run_to_end()
    assert fake.clock.elapsed_s < 8 * (PASS_S + QUEUE_S + batch_executor.POLL_S) + 0.01


def test_costs_are_those_of_the_device(checkpoint: Checkpoint, fake: FakeDevice) -> None:
    costs = StepCosts()
    engine = RunAhead(checkpoint, fake, costs)
    engine.add(steps=8)
    engine.run_to_end()
    assert costs.estimate_s("step", 24) == pytest.approx(PASS_S, rel=0.01)


def test_watchdog_counts_a_pass_from_its_start(checkpoint: Checkpoint, fake: FakeDevice) -> None:
    engine = RunAhead(checkpoint, fake)
    engine.add(steps=3)
    busy_s: list[float] = []
    synchronize = type(fake.record_event(None)).synchronize

    def observe(event: Any) -> None:
        synchronize(event)
        busy_s.append(engine.watchdog.health(alive=True).busy_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.unit.engine.fake_device.FakeEvent.synchronize", observe)
        engine.run_to_end()
    assert busy_s == pytest.approx([LAUNCH_S + PASS_S, PASS_S, PASS_S])


def test_fail_all_waits_for_queued_passes(checkpoint: Checkpoint, fake: FakeDevice) -> None:
    engine = RunAhead(checkpoint, fake)
    recorder = engine.add(steps=50)
    engine.scheduler.step()
    engine.scheduler.step()
    engine.scheduler.fail_all(EngineFailed())
    assert isinstance(recorder.final_event, Failed)
    assert recorder.steps == 2
    assert fake.clock.elapsed_s == fake.busy_until_s
    assert not engine.scheduler.has_work
    assert engine.scheduler.wait_s == 0
