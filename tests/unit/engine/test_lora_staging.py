"""LoRAs that a thread prepares for a GPU, which a fake device stands in for."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from serve.engine import lora_staging
from serve.engine.lora_layers import LoraSlots
from serve.engine.lora_manager import NO_LORAS, LoraManager, stage_weights
from serve.engine.lora_staging import PINNED_BUFFERS, LoraStager, PinnedBuffers, Staging
from serve.engine.lora_storage import StagedLora
from serve.lora.weights import LoraWeights, LowRank
from tests.logs import Logs
from tests.unit.engine.loras import lora_requests
from tests.unit.engine.requests import RequestRecorder, make_request

WIDTH = 4
TIMEOUT_S = 60


def _lora(width: int = WIDTH) -> LoraWeights:
    return LoraWeights({"": LowRank(torch.ones(2, width), torch.ones(WIDTH, 2))}, {})


LORAS = {"a": _lora(), "b": _lora(), "wrong": _lora(WIDTH + 1)}


def _manager(device: str = "cuda") -> LoraManager:
    """Slots on the CPU. They report `device` as theirs."""
    slots = LoraSlots({"transformer": nn.Linear(WIDTH, WIDTH)}, 2**20, 8)
    manager = LoraManager(slots)
    slots_on_cpu = slots.load

    def load(numbers: list[int], staged: StagedLora) -> None:
        slots.device = torch.device("cpu")
        slots_on_cpu(numbers, staged)

    slots.load = load  # type: ignore[method-assign, assignment]
    slots.device = torch.device(device)
    return manager


@pytest.fixture
def stager() -> Iterator[LoraStager]:
    stager = LoraStager(_manager())
    yield stager
    stager.stop()


class BusyThread:
    """Keeps the thread of a stager busy within the context."""

    def __init__(self, stager: LoraStager) -> None:
        self._stager = stager
        self._free = threading.Event()

    def __enter__(self) -> None:
        self._stager._thread.submit(self._free.wait, TIMEOUT_S)

    def __exit__(self, *_: object) -> None:
        self._free.set()


def test_only_loras_that_are_not_resident_are_staged() -> None:
    manager = _manager()
    active_loras = manager.acquire(lora_requests(a=1.0), LORAS)
    manager.slots.device = torch.device("cuda")
    stager = LoraStager(manager)
    assert active_loras is not None
    assert stager.start(LORAS).loras.keys() == {"b", "wrong"}
    stager.stop()


def test_nothing_is_staged_for_slots_on_a_cpu() -> None:
    stager = LoraStager(_manager("cpu"))
    staging = stager.start(LORAS)
    assert not staging.loras
    assert staging.is_done
    staging.release()
    stager.stop()


def test_staged_lora_is_loaded_and_not_converted_again() -> None:
    manager = _manager()
    stager = LoraStager(manager)
    staged = stager.start({"a": LORAS["a"]}).loras
    staged["a"].result(TIMEOUT_S)
    other = LoraWeights({"": LowRank(torch.zeros(2, WIDTH), torch.zeros(WIDTH, 2))}, {})
    assert manager.acquire(lora_requests(a=1.0), {"a": other}, staged) is not None
    assert manager.loads == 1
    assert manager.slots.groups["transformer."].rows.count_nonzero() == 2 * 2 * WIDTH
    stager.stop()


def test_lora_that_is_being_converted_is_acquired_later() -> None:
    manager = _manager()
    future: Future[StagedLora] = Future()
    arguments = lora_requests(a=1.0), LORAS, {"a": future}
    assert not manager.can_acquire(*arguments)
    assert manager.acquire(*arguments) is None
    future.set_result(stage_weights(manager.slots, LORAS["a"]))
    assert manager.can_acquire(*arguments)
    assert manager.acquire(*arguments) is not None


def test_staged_weights_of_a_wrong_shape_raise_value_error_in_acquire_and_take_no_slots() -> None:
    manager = _manager()
    stager = LoraStager(manager)
    staged = stager.start({"wrong": LORAS["wrong"]}).loras
    wait(staged.values(), TIMEOUT_S)
    with pytest.raises(ValueError, match="matrices"):
        manager.acquire(lora_requests(wrong=1.0), LORAS, staged)
    assert not manager.is_resident("wrong")
    stager.stop()


def test_stager_reports_each_lora_that_is_staged() -> None:
    reported: SimpleQueue[bool] = SimpleQueue()
    stager = LoraStager(_manager(), lambda: reported.put(True))
    with BusyThread(stager):
        stager.start({"a": LORAS["a"], "wrong": LORAS["wrong"]})
        assert reported.empty()
    for _ in range(2):
        assert reported.get(timeout=TIMEOUT_S)
    stager.stop()


def test_requests_for_the_same_lora_share_its_conversion(stager: LoraStager) -> None:
    with BusyThread(stager):
        first, second = stager.start({"a": LORAS["a"]}), stager.start(LORAS)
        assert first.loras["a"] is second.loras["a"]
        first.release()
        assert not second.loras["a"].cancelled()
        second.release()
        assert all(staged.cancelled() for staged in second.loras.values())
        third = stager.start({"a": LORAS["a"]})
    assert third.loras["a"].result(TIMEOUT_S)


def test_lora_that_was_evicted_after_the_start_is_staged_later() -> None:
    manager = _manager()
    manager.release(manager.acquire(lora_requests(a=1.0), LORAS) or NO_LORAS)
    manager.slots.device = torch.device("cuda")
    stager = LoraStager(manager)
    weights = {key: LORAS[key] for key in "ab"}
    staging = stager.start(weights)
    assert stager.extend(staging, weights) is staging
    manager._residents.clear()
    with BusyThread(stager):
        extended = stager.extend(staging, weights)
    assert extended.loras.keys() == {"a", "b"}
    assert extended.loras["b"] is staging.loras["b"]
    assert all(staged.result(TIMEOUT_S) for staged in extended.loras.values())
    extended.release()
    assert not stager._conversions
    stager.stop()


class FakeBuffers(PinnedBuffers):
    """Buffers in ordinary memory."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[Tensor] = []

    def take(self, size_bytes: int) -> Tensor | None:
        buffer = super().take(size_bytes)
        if buffer is not None:
            self.used.append(buffer)
        return buffer

    def give_back(self, buffer: Tensor) -> None:
        self.used = [each for each in self.used if each is not buffer]
        super().give_back(buffer)


@pytest.fixture
def buffers(stager: LoraStager, monkeypatch: pytest.MonkeyPatch) -> FakeBuffers:
    """Those of the stager."""
    allocate = torch.empty
    monkeypatch.setattr(lora_staging, "PINNED_BUFFER_BYTES", 1000)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **fields: allocate(*shape, **fields))
    buffers = FakeBuffers()
    monkeypatch.setattr(stager, "_buffers", buffers)
    return buffers


def test_few_loras_are_in_pinned_memory_at_a_time(stager: LoraStager, buffers: FakeBuffers) -> None:
    stagings = [stager.start({str(number): LORAS["a"]}) for number in range(PINNED_BUFFERS + 2)]
    for staging in stagings:
        wait(staging.loras.values(), TIMEOUT_S)
    assert len(buffers.used) == PINNED_BUFFERS
    first, *others = buffers.used
    stagings[0].release()
    assert buffers.used == others
    staged = stager.start({"new": LORAS["b"]}).loras["new"].result(TIMEOUT_S)
    (rows,) = staged.rows.values()
    assert rows.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()


def test_lora_larger_than_a_pinned_buffer_is_in_other_memory(
    stager: LoraStager, buffers: FakeBuffers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_staging, "PINNED_BUFFER_BYTES", 10)
    staging = stager.start({"a": LORAS["a"]})
    staging.loras["a"].result(TIMEOUT_S)
    assert not buffers.used
    staging.release()


def test_buffer_of_a_released_lora_is_free_only_after_its_conversion(
    stager: LoraStager, buffers: FakeBuffers, monkeypatch: pytest.MonkeyPatch
) -> None:
    converting, go_on = threading.Event(), threading.Event()
    zero = Tensor.zero_

    def wait_and_zero(memory: Tensor) -> Tensor:
        converting.set()
        assert go_on.wait(TIMEOUT_S)
        return zero(memory)

    monkeypatch.setattr(Tensor, "zero_", wait_and_zero)
    staging = stager.start({"a": LORAS["a"]})
    assert converting.wait(TIMEOUT_S)
    staging.release()
    assert len(buffers.used) == 1
    go_on.set()
    stager.stop()
    assert not buffers.used


def test_memory_that_cannot_be_pinned_is_replaced(
    stager: LoraStager, monkeypatch: pytest.MonkeyPatch, logs: Logs
) -> None:
    allocate = torch.empty

    def fail(*shape: int, pin_memory: bool = False, **fields: Any) -> Tensor:
        if pin_memory:
            raise RuntimeError("too much locked memory")
        return allocate(*shape, **fields)

    monkeypatch.setattr(torch, "empty", fail)
    for number in range(PINNED_BUFFERS + 1):
        assert stager.start({str(number): LORAS["a"]}).loras[str(number)].result(TIMEOUT_S)
    assert [record.levelname for record in logs.records] == ["WARNING"] * PINNED_BUFFERS


@pytest.mark.parametrize("end", ["cancel", "complete", "attach"])
def test_staged_loras_are_released_once_when_a_request_ends_or_has_its_loras(end: str) -> None:
    released: list[str] = []
    state = RequestRecorder(0, make_request()).state
    state.staging = Staging({"a": Future()}, lambda: released.append("a"))
    assert state.is_staging
    if end == "attach":
        state.attach_loras(NO_LORAS)
    else:
        getattr(state, end)()
    assert released == ["a"]
    if end == "attach":
        state.complete()
    assert released == ["a"]


def test_cancelled_request_does_not_wait_for_its_loras() -> None:
    state = RequestRecorder(0, make_request()).state
    state.staging = Staging({"a": Future()})
    state.cancel_token.cancelled = True
    assert not state.is_staging
