"""Loading of LoRAs by the scheduler: waiting for slots, fairness and failures."""

import gc
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from typing import get_args

import pytest

from serve.engine.checkpoint import Checkpoint
from serve.engine.lora_manager import stage_weights
from serve.engine.lora_staging import LoraStager, Staging
from serve.engine.lora_storage import StagedLora
from serve.engine.request import Canceled, Completed, Failed, GenerationRequest
from serve.engine.scheduler import Scheduler
from serve.engine.watchdog import Watchdog
from serve.errors import EngineFailed, LorasMissing, LorasTooLarge
from serve.events import Started
from serve.lora.weights import LoraWeights
from serve.settings import PoolSettings, SchedulingPolicy
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.loras import lora_requests, make_lora, resident_keys
from tests.unit.engine.requests import RequestRecorder, UnmeasuredCosts, make_request

RANK = 16
KEYS = "abcdef"


@pytest.fixture(scope="module")
def checkpoint(checkpoints: Checkpoints) -> Checkpoint:
    """Has slots for two LoRAs of rank RANK."""
    checkpoint = checkpoints.load("dev", "bf16", lora_bytes=2**20)
    assert 2 * RANK <= checkpoint.lora_slots.count < 3 * RANK
    return checkpoint


@pytest.fixture(scope="module")
def loras(checkpoint: Checkpoint) -> Mapping[str, LoraWeights]:
    return {key: make_lora(checkpoint, seed, rank=RANK, layers="attn") for seed, key in enumerate(KEYS)}


class RecordedScheduler:
    """A scheduler that records the requests added to it."""

    def __init__(
        self, checkpoint: Checkpoint, loras: Mapping[str, LoraWeights], policy: SchedulingPolicy = "turns"
    ) -> None:
        pool = PoolSettings(model="", scheduling_policy=policy)
        self._scheduler = Scheduler(checkpoint, pool, Watchdog(), UnmeasuredCosts())
        self._loras = loras
        self._next_number = 0

    def use(self, stager: type[LoraStager]) -> None:
        self._scheduler.lora_stager = stager(self._scheduler.loras)

    def add(self, keys: str, steps: int = 2) -> RequestRecorder:
        """Adds a request with the LoRAs `keys`, at scale 1."""
        loras = lora_requests(**dict.fromkeys(keys, 1.0))
        return self.add_request(make_request(steps=steps, loras=loras, weights=self._loras))

    def add_request(self, request: GenerationRequest) -> RequestRecorder:
        recorder = RequestRecorder(self._next_number, request)
        self._next_number += 1
        self._scheduler.add([recorder.state], ())
        return recorder

    def step(self, iterations: int = 1) -> None:
        for _ in range(iterations):
            self._scheduler.step()

    def run_to_end(self) -> None:
        while self._scheduler.has_work:
            self._scheduler.step()

    def fail_all(self) -> None:
        self._scheduler.fail_all(EngineFailed())

    @property
    def can_work(self) -> bool:
        return self._scheduler.can_work

    @property
    def lora_loads(self) -> int:
        return self._scheduler.loras.loads

    @property
    def resident(self) -> set[str]:
        return resident_keys(self._scheduler.loras, KEYS)


@pytest.fixture
def scheduler(checkpoint: Checkpoint, loras: Mapping[str, LoraWeights]) -> RecordedScheduler:
    return RecordedScheduler(checkpoint, loras)


@pytest.fixture(params=get_args(SchedulingPolicy))
def any_scheduler(
    request: pytest.FixtureRequest, checkpoint: Checkpoint, loras: Mapping[str, LoraWeights]
) -> RecordedScheduler:
    return RecordedScheduler(checkpoint, loras, request.param)


def _started(*recorders: RequestRecorder) -> list[bool]:
    return [any(isinstance(event, Started) for event in recorder.events) for recorder in recorders]


def test_at_most_one_request_loads_loras_between_two_steps(scheduler: RecordedScheduler) -> None:
    recorders = [scheduler.add("a"), scheduler.add("b"), scheduler.add("a"), scheduler.add("")]
    for loads, started in ((1, [True, False, False, True]), (2, [True, True, False, True]), (2, [True] * 4)):
        scheduler.step()
        assert scheduler.lora_loads == loads
        assert _started(*recorders) == started
    scheduler.fail_all()


def test_requests_with_resident_loras_start_together(scheduler: RecordedScheduler) -> None:
    scheduler.add("a")
    scheduler.run_to_end()
    recorders = [scheduler.add("a") for _ in range(4)]
    scheduler.step()
    assert _started(*recorders) == [True] * 4
    scheduler.fail_all()


def test_request_waits_for_slots_while_requests_without_loras_start(scheduler: RecordedScheduler) -> None:
    running = [scheduler.add("a", steps=4), scheduler.add("b", steps=9)]
    scheduler.step(2)
    waiting, plain = scheduler.add("c"), scheduler.add("")
    scheduler.step(2)
    assert _started(waiting, plain) == [False, True]
    assert scheduler.resident == {"a", "b"}
    scheduler.step(2)
    assert isinstance(running[0].final_event, Completed)
    assert _started(waiting) == [True]
    assert scheduler.resident == {"b", "c"}
    scheduler.run_to_end()


def test_stream_of_requests_for_resident_loras_does_not_starve_a_waiting_request(
    any_scheduler: RecordedScheduler,
) -> None:
    """Each new request uses the resident LoRAs, so without fairness they would stay pinned."""
    for _ in range(3):
        any_scheduler.add("ab", steps=3)
        any_scheduler.step()
    waiting = any_scheduler.add("cd")
    newer = []
    for _ in range(12):
        newer.append(any_scheduler.add("ab", steps=3))
        any_scheduler.step()
    assert isinstance(waiting.final_event, Completed)
    any_scheduler.run_to_end()
    assert all(isinstance(recorder.final_event, Completed) for recorder in newer)


def test_requests_with_overlapping_loras_do_not_deadlock(any_scheduler: RecordedScheduler) -> None:
    for keys in ("ab", "cd", "ac", "bd", "ad"):
        any_scheduler.add(keys, steps=1)
    first, second = any_scheduler.add("ab"), any_scheduler.add("bc")
    any_scheduler.run_to_end()
    assert isinstance(first.final_event, Completed)
    assert isinstance(second.final_event, Completed)


@pytest.mark.parametrize("cancel_first", ["waiting", "running"])
def test_cancelled_request_frees_its_slots(any_scheduler: RecordedScheduler, cancel_first: str) -> None:
    running, waiting, last = (
        any_scheduler.add("ab", steps=50),
        any_scheduler.add("cd", steps=50),
        any_scheduler.add("ef"),
    )
    any_scheduler.step(2)
    assert _started(running, waiting, last) == [True, False, False]
    to_cancel = {"waiting": [waiting, running], "running": [running, waiting]}[cancel_first]
    for recorder in to_cancel:
        recorder.state.cancel_token.cancelled = True
        any_scheduler.step()
        assert isinstance(recorder.final_event, Canceled)
    any_scheduler.run_to_end()
    assert isinstance(last.final_event, Completed)


def test_fail_all_frees_all_slots(any_scheduler: RecordedScheduler) -> None:
    any_scheduler.add("ab", steps=9)
    any_scheduler.step(2)
    any_scheduler.fail_all()
    later = any_scheduler.add("cd")
    any_scheduler.run_to_end()
    assert isinstance(later.final_event, Completed)


def test_missing_too_large_and_mismatched_loras_fail_only_their_request(
    scheduler: RecordedScheduler, checkpoint: Checkpoint, loras: Mapping[str, LoraWeights]
) -> None:
    scheduler.add("a")
    scheduler.run_to_end()
    resident_only = scheduler.add_request(make_request(loras=lora_requests(a=1.0, b=0.0)))
    missing = scheduler.add_request(make_request(loras=lora_requests(a=1.0, b=1.0)))
    large_lora = make_lora(checkpoint, 1, rank=60, layers="x_embedder")
    too_large = scheduler.add_request(
        make_request(loras=lora_requests(a=1.0, large=1.0), weights={"large": large_lora})
    )
    unknown_layer = LoraWeights({"to_q": loras["b"].transformer["transformer_blocks.0.attn.to_q"]}, {})
    mismatched = scheduler.add_request(
        make_request(loras=lora_requests(unknown=1.0), weights={"unknown": unknown_layer})
    )
    scheduler.run_to_end()
    assert isinstance(resident_only.final_event, Completed)
    errors = [
        recorder.final_event.error
        for recorder in (missing, too_large, mismatched)
        if isinstance(recorder.final_event, Failed)
    ]
    assert [type(error) for error in errors] == [LorasMissing, LorasTooLarge, EngineFailed]
    assert "76" in str(errors[1])
    assert scheduler.resident == {"a"}


def test_weights_are_not_referenced_after_loading(scheduler: RecordedScheduler, checkpoint: Checkpoint) -> None:
    """Weights may be in shared memory, which is freed only when nothing references them."""
    weights = make_lora(checkpoint, 1)
    reference = weakref.ref(weights.transformer["x_embedder"].down)
    scheduler.add_request(make_request(steps=9, loras=lora_requests(new=1.0), weights={"new": weights}))
    del weights
    gc.collect()
    assert reference() is not None
    scheduler.step()
    gc.collect()
    assert reference() is None
    scheduler.fail_all()


def test_loading_loras_is_reported_as_a_stage(scheduler: RecordedScheduler) -> None:
    adapted, plain = scheduler.add("a"), scheduler.add("")
    scheduler.run_to_end()
    stages = [
        list(recorder.final_event.stages_ms)
        for recorder in (adapted, plain)
        if isinstance(recorder.final_event, Completed)
    ]
    assert stages == [["queue", "lora", "text", "denoise", "decode"], ["queue", "text", "denoise", "decode"]]


def test_request_whose_lora_is_being_staged_lets_newer_ones_pass(
    scheduler: RecordedScheduler, checkpoint: Checkpoint, loras: Mapping[str, LoraWeights]
) -> None:
    scheduler.add("a")
    scheduler.run_to_end()
    future: Future[StagedLora] = Future()
    staging = scheduler.add("b")
    staging.state.staging = Staging({"b": future})
    assert not scheduler.can_work
    newer = [scheduler.add("a"), scheduler.add("")]
    assert scheduler.can_work
    scheduler.step()
    assert _started(staging, *newer) == [False, True, True]
    future.set_result(stage_weights(checkpoint.lora_slots, loras["b"]))
    scheduler.step()
    assert _started(staging) == [True]
    scheduler.run_to_end()
    assert isinstance(staging.final_event, Completed)


def test_request_can_be_cancelled_while_its_lora_is_being_staged(scheduler: RecordedScheduler) -> None:
    recorder = scheduler.add("b")
    recorder.state.staging = Staging({"b": Future()})
    scheduler.step()
    assert not recorder.events
    recorder.state.cancel_token.cancelled = True
    assert scheduler.can_work
    scheduler.step()
    assert isinstance(recorder.final_event, Canceled)


def test_evicted_lora_is_staged_again(scheduler: RecordedScheduler, loras: Mapping[str, LoraWeights]) -> None:
    class FakeStager(LoraStager):
        def extend(self, staging: Staging, weights: Mapping[str, LoraWeights]) -> Staging:
            return staging if staging.loras else Staging({"b": Future()})

    scheduler.use(FakeStager)
    recorder = scheduler.add("b")
    scheduler.step()
    assert recorder.state.is_staging
    recorder.state.cancel_token.cancelled = True
    scheduler.run_to_end()
