import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from serve.engine.checkpoint import Checkpoint
from serve.engine.engine import Engine
from serve.engine.request import Canceled, Completed, EngineEvent, Failed, GenerationRequest, ImageReady
from serve.engine.request_state import CancelToken
from serve.engine.watchdog import EngineHealth
from serve.errors import EngineFailed, NotReady
from serve.events import Started, StepDone
from serve.settings import PoolSettings
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.faults import Faulty, first_call
from tests.unit.engine.requests import make_request, run_request

TIMEOUT_S = 60


@pytest.fixture
def checkpoint(checkpoints: Checkpoints) -> Checkpoint:
    return checkpoints.get("dev", "bf16")


@pytest.fixture
def engine(checkpoint: Checkpoint) -> Iterator[Engine]:
    engine = Engine(checkpoint, PoolSettings(model=""))
    engine.start()
    yield engine
    engine.stop()


class Client:
    """Submits a job and hears of it on another thread than the engine's."""

    def __init__(self, engine: Engine, job: GenerationRequest) -> None:
        self._events: SimpleQueue[EngineEvent] = SimpleQueue()
        self.ticket: CancelToken = engine.submit(job, self._events.put)

    def next(self) -> EngineEvent:
        return self._events.get(timeout=TIMEOUT_S)

    def until(self, *kinds: type) -> list[EngineEvent]:
        """The events up to the first of one of `kinds`."""
        events = [self.next()]
        while not isinstance(events[-1], kinds):
            events.append(self.next())
        return events

    def rest(self) -> list[EngineEvent]:
        return self.until(Completed, Failed, Canceled)


def test_a_job_is_told_from_its_start_to_its_end(engine: Engine, checkpoint: Checkpoint) -> None:
    job = make_request("inpainting", prompt="a fish " * 100, seeds=(1, 2), steps=4, strength=0.5)
    events = Client(engine, job).rest()
    started, first, second, third, fourth, *pixels, done = events
    assert isinstance(started, Started)
    assert [note.split()[0] for note in started.notes] == ["T5", "CLIP"]
    assert [first, second, third, fourth] == [
        StepDone(0, 1, 2),
        StepDone(1, 1, 2),
        StepDone(0, 2, 2),
        StepDone(1, 2, 2),
    ]
    assert [event.image for event in pixels if isinstance(event, ImageReady)] == [0, 1]
    assert isinstance(done, Completed)
    assert done.mean_batch == 2
    drawn = [event.to_host() for event in pixels if isinstance(event, ImageReady)]
    assert np.array_equal(drawn, run_request(checkpoint, job).pixels)


def test_the_stages_add_up_to_the_whole_time(engine: Engine) -> None:
    begin = time.monotonic()
    done = Client(engine, make_request("image_to_image", seeds=(1, 2))).rest()[-1]
    whole_ms = 1000 * (time.monotonic() - begin)
    assert isinstance(done, Completed)
    assert list(done.stages_ms) == ["queue", "text", "encode_image", "denoise", "decode"]
    assert all(stage_ms >= 0 for stage_ms in done.stages_ms.values())
    assert 0.5 * whole_ms <= sum(done.stages_ms.values()) <= whole_ms


def test_canceled_at_step_3_of_50_it_takes_no_further_step(engine: Engine) -> None:
    """Told by its listener, so between two steps."""
    submitted, over = threading.Event(), threading.Event()
    heard: list[EngineEvent] = []

    def listen(event: EngineEvent) -> None:
        heard.append(event)
        if event == StepDone(0, 3, 50):
            assert submitted.wait(TIMEOUT_S)
            engine.cancel(ticket)
        if isinstance(event, Canceled | Completed):
            over.set()

    ticket = engine.submit(make_request(steps=50), listen)
    submitted.set()
    assert over.wait(TIMEOUT_S)
    assert isinstance(heard[-1], Canceled)
    assert engine.stats.batches == 3
    assert engine.stats.images == 0


def test_canceled_from_another_thread_it_stops_within_one_step(engine: Engine) -> None:
    client = Client(engine, make_request(steps=50, seeds=(1, 2)))
    beside = Client(engine, make_request(steps=12))
    client.until(StepDone)
    engine.cancel(client.ticket)
    passes = engine.stats.image_steps
    assert isinstance(client.rest()[-1], Canceled)
    assert isinstance(beside.rest()[-1], Completed)
    assert engine.stats.image_steps <= passes + 3 + 12
    assert engine.stats.images == 0


def test_a_job_that_waits_can_be_canceled(engine: Engine) -> None:
    first = Client(engine, make_request(steps=20, seeds=(1, 2, 3, 4)))
    waiting = Client(engine, make_request(size=(64, 64), steps=50))
    engine.cancel(waiting.ticket)
    assert sum(isinstance(event, StepDone) for event in waiting.rest()) <= 1
    assert isinstance(first.rest()[-1], Completed)


def test_canceling_what_has_ended_changes_nothing(engine: Engine) -> None:
    client = Client(engine, make_request(steps=1))
    assert isinstance(client.rest()[-1], Completed)
    engine.cancel(client.ticket)
    assert isinstance(Client(engine, make_request(steps=1)).rest()[-1], Completed)


def test_counters_know_what_is_in_work(engine: Engine) -> None:
    assert engine.stats.mean_batch == 0
    client = Client(engine, make_request(seeds=(1, 2, 3), steps=2))
    client.until(StepDone)
    assert engine.stats.images == 3
    client.rest()
    assert (engine.stats.batches, engine.stats.image_steps) == (2, 6)
    assert engine.stats.mean_batch == 3


def test_stopping_fails_what_has_not_ended(checkpoint: Checkpoint) -> None:
    engine = Engine(checkpoint, PoolSettings(model=""))
    engine.start()
    stepping, waiting = (Client(engine, make_request(steps=50, size=size)) for size in ((96, 64), (64, 64)))
    stepping.until(StepDone)
    engine.stop()
    for client in (stepping, waiting):
        failed = client.rest()[-1]
        assert isinstance(failed, Failed)
        assert "stopping" in str(failed.error)
    assert not engine.health.healthy
    with pytest.raises(NotReady):
        engine.submit(make_request(), print)
    engine.stop()


def test_an_engine_that_was_never_started_takes_no_jobs(checkpoint: Checkpoint) -> None:
    engine = Engine(checkpoint, PoolSettings(model=""))
    with pytest.raises(NotReady):
        engine.submit(make_request(), print)
    engine.stop()


def test_a_plan_of_another_variant_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="guidance"):
        engine.submit(make_request(guidance=None), print)


def test_warming_up_teaches_how_long_each_kind_of_work_may_take(checkpoint: Checkpoint) -> None:
    seen: list[EngineHealth] = []

    def look(*_: Any, **__: Any) -> bool:
        seen.append(watched.health)
        return False

    parts: dict[str, Any] = {
        "t5": Faulty(checkpoint.t5, look, RuntimeError()),
        "transformer": Faulty(checkpoint.transformer, look, RuntimeError()),
        "vae": Faulty(Faulty(checkpoint.vae, look, RuntimeError(), "encode"), look, RuntimeError(), "decode"),
    }
    watched = Engine(replace(checkpoint, **parts), PoolSettings(model="", prompt_cache_entries=0))
    watched.start()
    try:
        watched.warm_up([(64, 64), (96, 64)])
        assert [pulse.limit_s for pulse in seen[:4]] == [None] * 4
        seen.clear()
        assert isinstance(Client(watched, make_request("inpainting", steps=1)).rest()[-1], Completed)
    finally:
        watched.stop()
    assert [pulse.work.kind for pulse in seen if pulse.work] == ["text", "encode_image", "step", "decode"]
    assert all(pulse.healthy and pulse.limit_s for pulse in seen)


def test_a_warm_up_that_fails_says_so(checkpoint: Checkpoint) -> None:
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


def test_other_work_runs_on_the_thread_that_owns_the_device_between_steps(engine: Engine) -> None:
    client = Client(engine, make_request(steps=30))
    client.until(StepDone)
    assert engine.run_on_device(lambda: threading.current_thread().name).result(TIMEOUT_S) == "engine"
    assert engine.stats.images == 1
    with pytest.raises(ZeroDivisionError):
        engine.run_on_device(lambda: 1 // 0).result(TIMEOUT_S)
    assert isinstance(client.rest()[-1], Completed)


def test_other_work_that_never_ran_is_canceled_when_the_engine_stops(checkpoint: Checkpoint) -> None:
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
