"""LoRAs that a thread prepares for a GPU, which a fake device stands in for."""

from concurrent.futures import Future

import pytest
import torch
from torch import nn

from serve.engine.lora_layers import LoraSlots
from serve.engine.lora_manager import LoraManager
from serve.engine.lora_staging import LoraStager
from serve.engine.lora_storage import StagedLora
from serve.lora.weights import LoraWeights, LowRank
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


def test_only_loras_that_are_not_resident_are_staged() -> None:
    manager = _manager()
    active_loras = manager.acquire(lora_requests(a=1.0), LORAS)
    manager.slots.device = torch.device("cuda")
    stager = LoraStager(manager)
    assert active_loras is not None
    assert stager.start(LORAS).keys() == {"b", "wrong"}
    stager.stop()


def test_nothing_is_staged_for_slots_on_a_cpu() -> None:
    stager = LoraStager(_manager("cpu"))
    assert not stager.start(LORAS)
    stager.stop()


def test_staged_lora_is_loaded_and_not_converted_again() -> None:
    manager = _manager()
    stager = LoraStager(manager)
    staged = stager.start({"a": LORAS["a"]})
    staged["a"].result(TIMEOUT_S)
    other = LoraWeights({"": LowRank(torch.zeros(2, WIDTH), torch.zeros(WIDTH, 2))}, {})
    assert manager.acquire(lora_requests(a=1.0), {"a": other}, staged) is not None
    assert manager.loads == 1
    assert manager.slots.groups["transformer."].rows.count_nonzero() == 2 * 2 * WIDTH
    stager.stop()


def test_staged_weights_of_a_wrong_shape_raise_value_error_in_acquire_and_take_no_slots() -> None:
    manager = _manager()
    stager = LoraStager(manager)
    staged = stager.start({"wrong": LORAS["wrong"]})
    with pytest.raises(ValueError, match="matrices"):
        manager.acquire(lora_requests(wrong=1.0), LORAS, staged)
    assert not manager.is_resident("wrong")
    stager.stop()


@pytest.mark.parametrize("end", ["cancel", "complete"])
def test_staged_loras_of_an_ended_request_are_dropped(end: str) -> None:
    """One that still waits for the thread is not converted."""
    state = RequestRecorder(0, make_request()).state
    waiting: Future[StagedLora] = Future()
    state.staged_loras = {"a": waiting}
    getattr(state, end)()
    assert waiting.cancelled()
    assert not state.staged_loras
