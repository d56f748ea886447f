"""The engine with small checkpoints: events, cancellation, health, warm-up and failures."""

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch

from serve.engine import batching, device, work_order
from serve.engine import engine as engine_module
from serve.engine.checkpoint import Checkpoint
from serve.engine.cuda_graphs import CAPTURE_USES
from serve.engine.denoiser import Denoiser
from serve.engine.engine import Engine
from serve.engine.lora_manager import stage_weights
from serve.engine.lora_staging import LoraStager, Staging
from serve.engine.lora_storage import StagedLora
from serve.engine.request import Canceled, Completed, EngineEvent, Failed, GenerationRequest, ImageReady, Listener
from serve.engine.request_state import CancelToken
from serve.engine.watchdog import EngineHealth
from serve.errors import EngineFailed, NotReady
from serve.events import Started, StepDone
from serve.lora.weights import LoraWeights
from serve.model_specs import Size
from serve.settings import PoolSettings
from tests.logs import Logs
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.faults import Faulty, first_call, observed
from tests.unit.engine.loras import lora_requests, make_lora
from tests.unit.engine.requests import make_request, run_request

TIMEOUT_S = 60


@pytest.fixture
def engine(checkpoint: Checkpoint) -> Iterator[Engine]:
    engine = Engine(checkpoint, PoolSettings(model=""))
    engine.start()
    yield engine
    engine.stop()


class Client:
    """Submits a request and receives its events on the test's thread."""

    def __init__(self, engine: Engine, request: GenerationRequest) -> None:
        self._events: SimpleQueue[EngineEvent] = SimpleQueue()
        self.cancel_token: CancelToken = engine.submit(request, self._events.put)

    def next_event(self) -> EngineEvent:
        return self._events.get(timeout=TIMEOUT_S)

    def events_until(self, *types: type) -> list[EngineEvent]:
        """The events up to the first of one of `types`."""
        events = [self.next_event()]
        while not isinstance(events[-1], types):
            events.append(self.next_event())
        return events

    def remaining_events(self) -> list[EngineEvent]:
        """The events up to the final one."""
        return self.events_until(Completed, Failed, Canceled)

    def final_event(self) -> EngineEvent:
        return self.remaining_events()[-1]


def test_request_emits_started_steps_images_and_completed(engine: Engine, checkpoint: Checkpoint) -> None:
    request = make_request("inpainting", prompt="a fish " * 100, seeds=(1, 2), steps=4, strength=0.5)
    started, first, second, third, fourth, *images, completed = Client(engine, request).remaining_events()
    assert isinstance(started, Started)
    assert [note.split()[0] for note in started.notes] == ["T5", "CLIP"]
    assert [first, second, third, fourth] == [
        StepDone(0, 1, 2),
        StepDone(1, 1, 2),
        StepDone(0, 2, 2),
        StepDone(1, 2, 2),
    ]
    assert [event.index for event in images if isinstance(event, ImageReady)] == [0, 1]
    assert isinstance(completed, Completed)
    assert completed.mean_batch == 2
    pixels = [event.to_host() for event in images if isinstance(event, ImageReady)]
    assert np.array_equal(pixels, run_request(checkpoint, request).pixels)


def test_stage_times_add_up_to_the_total_time(engine: Engine) -> None:
    start_s = time.monotonic()
    completed = Client(engine, make_request("image_to_image", seeds=(1, 2))).final_event()
    total_ms = 1000 * (time.monotonic() - start_s)
    assert isinstance(completed, Completed)
    assert list(completed.stages_ms) == ["queue", "text", "encode_image", "denoise", "decode"]
    assert all(stage_ms >= 0 for stage_ms in completed.stages_ms.values())
    assert 0.5 * total_ms <= sum(completed.stages_ms.values()) <= total_ms


def test_request_cancelled_by_its_listener_takes_no_further_step(engine: Engine) -> None:
    """The listener runs between two steps."""
    submitted, ended = threading.Event(), threading.Event()
    events: list[EngineEvent] = []

    def listener(event: EngineEvent) -> None:
        events.append(event)
        if event == StepDone(0, 3, 50):
            assert submitted.wait(TIMEOUT_S)
            engine.cancel(cancel_token)
        if isinstance(event, Canceled | Completed):
            ended.set()

    cancel_token = engine.submit(make_request(steps=50), listener)
    submitted.set()
    assert ended.wait(TIMEOUT_S)
    assert isinstance(events[-1], Canceled)
    assert engine.stats.batches == 3
    assert engine.stats.images == 0


def test_request_cancelled_from_another_thread_stops_within_one_step(engine: Engine) -> None:
    client = Client(engine, make_request(steps=50, seeds=(1, 2)))
    other = Client(engine, make_request(steps=12))
    client.events_until(StepDone)
    engine.cancel(client.cancel_token)
    image_steps = engine.stats.image_steps
    assert isinstance(client.final_event(), Canceled)
    assert isinstance(other.final_event(), Completed)
    assert engine.stats.image_steps <= image_steps + 3 + 12
    assert engine.stats.images == 0


def test_waiting_request_can_be_cancelled(engine: Engine) -> None:
    running = Client(engine, make_request(steps=20, seeds=(1, 2, 3, 4)))
    waiting = Client(engine, make_request(size=(64, 64), steps=50))
    engine.cancel(waiting.cancel_token)
    assert sum(isinstance(event, StepDone) for event in waiting.remaining_events()) <= 1
    assert isinstance(running.final_event(), Completed)


def test_cancelling_an_ended_request_has_no_effect(engine: Engine) -> None:
    client = Client(engine, make_request(steps=1))
    assert isinstance(client.final_event(), Completed)
    engine.cancel(client.cancel_token)
    assert isinstance(Client(engine, make_request(steps=1)).final_event(), Completed)


def test_stats_count_batches_steps_and_unfinished_images(engine: Engine) -> None:
    assert engine.stats.mean_batch == 0
    client = Client(engine, make_request(seeds=(1, 2, 3), steps=2))
    client.events_until(StepDone)
    assert engine.stats.images == 3
    client.remaining_events()
    assert (engine.stats.batches, engine.stats.image_steps) == (2, 6)
    assert engine.stats.mean_batch == 3


def test_pass_times_are_taken_once(engine: Engine) -> None:
    assert engine.take_pass_times() == []
    Client(engine, make_request(seeds=(1, 2, 3), steps=2, size=(64, 32))).remaining_events()
    passes = engine.take_pass_times()
    assert [(each.images, each.pixels) for each in passes] == [(3, 64 * 32)] * 2
    assert all(each.seconds > 0 for each in passes)
    assert engine.take_pass_times() == []


def test_stats_have_the_state_of_caches_and_slots(engine: Engine) -> None:
    for _ in range(3):
        Client(engine, make_request(steps=1)).remaining_events()
    stats = engine.stats
    assert (stats.prompt_cache_misses, stats.prompt_cache_hits) == (1, 2)
    assert (stats.resident_loras, stats.lora_slots_used) == (0, 0)
    assert stats.lora_slots > 0
    assert engine.memory_bytes() == {}


def test_stop_fails_unfinished_requests(checkpoint: Checkpoint) -> None:
    engine = Engine(checkpoint, PoolSettings(model=""))
    engine.start()
    running, waiting = (Client(engine, make_request(steps=50, size=size)) for size in ((64, 64), (96, 64)))
    running.events_until(StepDone)
    engine.stop()
    for client in (running, waiting):
        failed = client.final_event()
        assert isinstance(failed, Failed)
        assert "stopping" in str(failed.error)
    assert not engine.health.healthy
    with pytest.raises(NotReady):
        engine.submit(make_request(), print)
    engine.stop()


def test_engine_that_was_not_started_raises_not_ready(checkpoint: Checkpoint) -> None:
    engine = Engine(checkpoint, PoolSettings(model=""))
    with pytest.raises(NotReady):
        engine.submit(make_request(), print)
    engine.stop()


def test_request_without_required_guidance_raises_value_error(engine: Engine) -> None:
    with pytest.raises(ValueError, match="guidance"):
        engine.submit(make_request(guidance=None), print)


def test_warm_up_sets_a_time_limit_for_each_kind_of_work(checkpoint: Checkpoint) -> None:
    observations: list[EngineHealth] = []

    def observe() -> None:
        observations.append(observed_engine.health)

    vae = observed(observed(checkpoint.vae, observe, "encode"), observe, "decode")
    observed_checkpoint = replace(
        checkpoint,
        t5=observed(checkpoint.t5, observe),
        transformer=observed(checkpoint.transformer, observe, "x_embedder"),
        vae=vae,
    )
    observed_engine = Engine(observed_checkpoint, PoolSettings(model="", prompt_cache_entries=0))
    observed_engine.start()
    try:
        observed_engine.warm_up([(64, 64), (96, 64)])
        assert [health.limit_s for health in observations[:4]] == [None] * 4
        observations.clear()
        assert isinstance(Client(observed_engine, make_request("inpainting", steps=1)).final_event(), Completed)
    finally:
        observed_engine.stop()
    assert [health.work.kind for health in observations if health.work] == ["text", "encode_image", "step", "decode"]
    assert all(health.healthy and health.limit_s for health in observations)


@pytest.mark.parametrize(
    ("sizes", "others"), [([(64, 64), (96, 64)], []), ([(64, 64)], [(64, 32)]), ([(96, 64)], [(64, 64)])]
)
def test_first_runs_are_not_measured_where_they_are_slow(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, sizes: list[Size], others: list[Size]
) -> None:
    """They include compiling, for a square and for another shape, and the capture of CUDA graphs."""
    monkeypatch.setattr(device, "is_asynchronous", lambda _: True)
    limits: list[float | None] = []
    measured: list[Size] = []
    steps: list[int] = []

    def observe() -> None:
        limits.append(new_engine.health.limit_s)

    vae = observed(checkpoint.vae, observe, "decode")
    new_engine = Engine(replace(checkpoint, vae=vae), PoolSettings(model=""))
    clear, submit = new_engine._scheduler.costs.clear, new_engine.submit

    def record(request: GenerationRequest, listener: Listener) -> CancelToken:
        measured.append(request.size)
        steps.append(request.steps)
        return submit(request, listener)

    def clear_all() -> None:
        measured.clear()
        clear()

    monkeypatch.setattr(Denoiser, "warm_up_steps", CAPTURE_USES)
    monkeypatch.setattr(new_engine, "submit", record)
    monkeypatch.setattr(new_engine._scheduler.costs, "clear", clear_all)
    new_engine.start()
    try:
        new_engine.warm_up(sizes)
    finally:
        new_engine.stop()
    assert measured == sizes
    assert steps == [CAPTURE_USES] * len(sizes + others) + [1] * len(sizes)
    assert limits[: len(sizes + others) + 1] == [None] * (len(sizes + others) + 1)


def test_failed_warm_up_raises_engine_failed(checkpoint: Checkpoint) -> None:
    vae: Any = Faulty(checkpoint.vae, first_call(), RuntimeError("no memory"), "decode")
    engine = Engine(replace(checkpoint, vae=vae), PoolSettings(model=""))
    engine.start()
    with pytest.raises(EngineFailed):
        engine.warm_up([(64, 64)])
    engine.stop()


def test_schnell_warms_up_without_guidance(checkpoints: Checkpoints) -> None:
    engine = Engine(checkpoints.get("schnell", "bf16"), PoolSettings(model=""))
    engine.start()
    engine.warm_up([(64, 64)])
    engine.stop()
    assert engine.stats.batches == 1


def test_run_on_device_calls_on_the_engine_thread_between_steps(engine: Engine) -> None:
    client = Client(engine, make_request(steps=30))
    client.events_until(StepDone)
    assert engine.run_on_device(lambda: threading.current_thread().name).result(TIMEOUT_S) == "engine"
    assert engine.stats.images == 1
    with pytest.raises(ZeroDivisionError):
        engine.run_on_device(lambda: 1 // 0).result(TIMEOUT_S)
    assert isinstance(client.final_event(), Completed)


@pytest.mark.parametrize(("setting", "cpus", "threads"), [(3, 2, 3), (None, 2, 2), (None, 64, 8)])
def test_engine_has_the_threads_of_its_pool_or_one_for_each_cpu_up_to_a_limit(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, setting: int | None, cpus: int, threads: int
) -> None:
    monkeypatch.setattr(device, "available_cpus", lambda: cpus)
    engine = Engine(checkpoint, PoolSettings(model="", num_threads=setting))
    engine.start()
    try:
        assert engine.run_on_device(torch.get_num_threads).result() == threads
        assert engine.compute_dtype == "bfloat16"
    finally:
        engine.stop()


def test_stop_cancels_device_calls_that_have_not_started(checkpoint: Checkpoint) -> None:
    engine = Engine(checkpoint, PoolSettings(model=""))
    engine.start()
    entered, leave = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        leave.wait(TIMEOUT_S)

    running = engine.run_on_device(block)
    assert entered.wait(TIMEOUT_S)
    waiting = engine.run_on_device(print)
    threading.Timer(0.05, leave.set).start()
    engine.stop()
    assert running.result(TIMEOUT_S) is None
    assert waiting.cancelled()


def test_failed_iteration_fails_current_requests_and_the_engine_continues(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter((ZeroDivisionError,))

    def select_batch(*arguments: Any) -> Any:
        for error in errors:
            raise error
        return batching.select_batch(*arguments)

    monkeypatch.setattr(work_order, "select_batch", select_batch)
    engine = Engine(checkpoint, PoolSettings(model=""))
    engine.start()
    try:
        with pytest.raises(EngineFailed):
            engine.warm_up([(64, 64)])
        engine.warm_up([(64, 64)])
    finally:
        engine.stop()


def test_engine_with_unresponsive_device_is_unhealthy(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    vae: Any = Faulty(checkpoint.vae, first_call(), RuntimeError("the device is lost"), "encode")
    engine = Engine(replace(checkpoint, vae=vae), PoolSettings(model=""))
    monkeypatch.setattr(device, "is_responsive", lambda _: False)
    monkeypatch.setattr(device, "empty_cache", None)
    engine.start()
    try:
        assert engine.health.healthy
        with pytest.raises(EngineFailed):
            engine.warm_up([(64, 64)])
        assert not engine.health.healthy
    finally:
        engine.stop()


@pytest.mark.parametrize("end", ["staged", "cancelled"])
def test_engine_sleeps_until_a_lora_is_staged_or_its_request_is_cancelled(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    future: Future[StagedLora] = Future()

    class FakeStager(LoraStager):
        def start(self, weights: Mapping[str, LoraWeights]) -> Staging:
            future.add_done_callback(lambda _: self._on_staged())
            return Staging({"a": future})

    monkeypatch.setattr(engine_module, "LoraStager", FakeStager)
    engine = Engine(checkpoint, PoolSettings(model=""))
    iterations: list[int] = []
    step = engine._scheduler.step

    def count_and_step() -> None:
        iterations.append(1)
        step()

    monkeypatch.setattr(engine._scheduler, "step", count_and_step)
    weights = {"a": make_lora(checkpoint, 1)}
    engine.start()
    try:
        client = Client(engine, make_request(steps=1, loras=lora_requests(a=1.0), weights=weights))
        assert engine.run_on_device(lambda: len(iterations)).result(TIMEOUT_S) <= 2
        if end == "staged":
            future.set_result(stage_weights(checkpoint.lora_slots, weights["a"]))
        else:
            engine.cancel(client.cancel_token)
        assert isinstance(client.final_event(), Completed if end == "staged" else Canceled)
    finally:
        engine.stop()
    assert len(iterations) < 10


class BusyDevice:
    """A device that computes the first pass until `done` is set."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.waiting = threading.Event()
        """Set when a thread looks whether the pass is done."""

    def query(self) -> bool:
        self.waiting.set()
        return self.done.is_set()

    def synchronize(self) -> None:
        assert self.done.wait(TIMEOUT_S)

    def seconds_since(self, earlier: Any) -> float:
        return 1.0


@pytest.fixture
def busy_device(monkeypatch: pytest.MonkeyPatch) -> BusyDevice:
    busy = BusyDevice()
    monkeypatch.setattr(device, "is_asynchronous", lambda _: True)
    monkeypatch.setattr(device, "record_event", lambda _: busy)
    return busy


def test_new_work_ends_the_wait_for_a_busy_device(checkpoint: Checkpoint, busy_device: BusyDevice) -> None:
    engine = Engine(checkpoint, PoolSettings(model=""))
    engine.start()
    client = Client(engine, make_request(steps=3))
    assert busy_device.waiting.wait(TIMEOUT_S)
    result = engine.run_on_device(lambda: engine.stats.batches)
    busy_device.done.set()
    assert result.result(TIMEOUT_S) in (1, 2, 3)
    assert isinstance(client.final_event(), Completed)
    engine.stop()


def test_stop_waits_for_a_busy_device_and_fails_its_requests(checkpoint: Checkpoint, busy_device: BusyDevice) -> None:
    engine = Engine(checkpoint, PoolSettings(model=""))
    engine.start()
    client = Client(engine, make_request(steps=50))
    assert busy_device.waiting.wait(TIMEOUT_S)
    threading.Timer(0.05, busy_device.done.set).start()
    engine.stop()
    assert busy_device.done.is_set()
    assert isinstance(client.final_event(), Failed)
    assert not engine.health.alive


def test_requests_fail_when_the_thread_of_the_engine_fails(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, logs: Logs
) -> None:
    def fail() -> None:
        raise PermissionError

    monkeypatch.setattr(device, "yield_to_other_threads", fail)
    engine = Engine(checkpoint, PoolSettings(model=""))
    engine.start()
    with pytest.raises((EngineFailed, NotReady)):
        engine.warm_up([(64, 64)])
    engine.stop()
    assert len(logs.errors) == 1
    with pytest.raises(NotReady):
        Client(engine, make_request(steps=1))
