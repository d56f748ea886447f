"""Loading and eviction of LoRAs, and the scales and slots of a request."""

from collections.abc import Iterable, Mapping

import pytest
import torch
from torch import nn

from serve.engine.lora_layers import LoraSlots
from serve.engine.lora_manager import NO_LORAS, ActiveLoras, LoraManager
from serve.engine.request import LoraRequest
from serve.errors import LorasMissing, LorasTooLarge
from serve.lora.weights import LoraWeights, LowRank
from tests.unit.engine.loras import lora_requests, resident_keys

SLOTS = 10
WIDTH = 4


def _lora(rank: int, clip: bool = False) -> LoraWeights:
    layer = {"": LowRank(torch.full((rank, WIDTH), float(rank)), torch.ones(WIDTH, rank))}
    return LoraWeights(transformer={} if clip else layer, clip=layer if clip else {})


LORAS: Mapping[str, LoraWeights] = {
    "a": _lora(2),
    "b": _lora(3),
    "c": _lora(4),
    "d": _lora(5),
    "clip": _lora(1, clip=True),
    "all_slots": _lora(SLOTS),
    "too_large": _lora(SLOTS + 1),
}


@pytest.fixture
def manager() -> LoraManager:
    networks = {"transformer": nn.Linear(WIDTH, WIDTH), "clip": nn.Linear(WIDTH, WIDTH)}
    return LoraManager(LoraSlots(networks, (SLOTS + 1) * 2 * 2 * WIDTH * 4))


def _acquire(manager: LoraManager, keys: Iterable[str]) -> ActiveLoras | None:
    return manager.acquire(lora_requests(**dict.fromkeys(keys, 1.0)), LORAS)


def _acquire_and_release(manager: LoraManager, *requests: Iterable[str]) -> None:
    """Acquires the LoRAs of each request and releases them at once."""
    for keys in requests:
        active_loras = _acquire(manager, keys)
        assert active_loras is not None
        manager.release(active_loras)


@pytest.mark.parametrize(
    ("requests", "resident", "loads"),
    [
        pytest.param(["a", "a", "a"], "a", 1, id="a resident LoRA is not loaded again"),
        pytest.param(["a", "b", "d"], "abd", 3, id="all fit"),
        pytest.param(["a", "b", "d", "c"], "cd", 4, id="as few as necessary are evicted, least recently used first"),
        pytest.param(["a", "b", "d", "ab", "c"], "abc", 4, id="acquiring a LoRA again makes it recently used"),
        pytest.param(["a", "b", "d", "bc"], "bc", 4, id="LoRAs of the same request are not evicted"),
        pytest.param(["a", "b", ["all_slots"]], ["all_slots"], 3, id="a LoRA that needs all slots"),
        pytest.param(["a", "b", "d", ["clip"]], ["b", "d", "clip"], 4, id="LoRAs for CLIP need slots too"),
    ],
)
def test_least_recently_used_loras_are_evicted(
    manager: LoraManager, requests: list[Iterable[str]], resident: Iterable[str], loads: int
) -> None:
    _acquire_and_release(manager, *requests)
    assert resident_keys(manager, LORAS) == set(resident)
    assert manager.loads == loads
    assert manager.residents == len(set(resident))
    assert manager.slots_used == sum(LORAS[key].slots for key in resident)


def test_acquired_loras_stay_resident_until_released(manager: LoraManager) -> None:
    first, second = _acquire(manager, "a"), _acquire(manager, "ab")
    _acquire_and_release(manager, "d")
    assert _acquire(manager, "c") is not None
    assert resident_keys(manager, LORAS) == {"a", "b", "c"}
    assert first is not None
    assert second is not None
    manager.release(second)
    assert _acquire(manager, "d") is None
    manager.release(first)
    assert _acquire(manager, "d") is not None
    assert resident_keys(manager, LORAS) == {"c", "d"}


def test_can_acquire_changes_nothing(manager: LoraManager) -> None:
    _acquire_and_release(manager, "a", "b", "d")
    assert manager.can_acquire(lora_requests(c=1.0), LORAS)
    assert manager.can_acquire(lora_requests(a=1.0), {})
    assert resident_keys(manager, LORAS) == {"a", "b", "d"}
    assert _acquire(manager, "d") is not None
    assert not manager.can_acquire(lora_requests(all_slots=1.0), LORAS)
    with pytest.raises(LorasMissing):
        manager.can_acquire(lora_requests(c=1.0), {})
    with pytest.raises(LorasTooLarge):
        manager.can_acquire(lora_requests(too_large=1.0), LORAS)


def test_acquire_without_enough_slots_evicts_nothing(manager: LoraManager) -> None:
    _acquire_and_release(manager, "a")
    assert _acquire(manager, "d") is not None
    assert _acquire(manager, ["all_slots"]) is None
    assert resident_keys(manager, LORAS) == {"a", "d"}


@pytest.mark.parametrize("keys", [["too_large"], ["all_slots", "a"], ["a", "b", "c", "clip", "d"]])
def test_loras_larger_than_all_slots_raise_loras_too_large(manager: LoraManager, keys: list[str]) -> None:
    _acquire_and_release(manager, "b")
    with pytest.raises(LorasTooLarge) as caught:
        _acquire(manager, keys)
    assert (caught.value.rank, caught.value.capacity) == (sum(LORAS[key].slots for key in keys), SLOTS)
    assert resident_keys(manager, LORAS) == {"b"}


def test_only_resident_loras_can_be_acquired_without_weights(manager: LoraManager) -> None:
    _acquire_and_release(manager, "a")
    assert manager.acquire(lora_requests(a=1.0), {}) is not None
    assert not manager.are_resident(lora_requests(a=1.0, b=1.0, c=1.0))
    with pytest.raises(LorasMissing) as caught:
        manager.acquire(lora_requests(a=1.0, b=1.0, c=1.0), {"c": LORAS["c"]})
    assert caught.value.keys == ("b",)
    assert manager.are_resident(lora_requests(a=1.0))


def _acquire_scaled(manager: LoraManager, *scales: tuple[str, float]) -> ActiveLoras:
    active_loras = manager.acquire([LoraRequest(key, scale) for key, scale in scales], LORAS)
    assert active_loras is not None
    return active_loras


@pytest.mark.parametrize(
    ("scales", "summed"),
    [
        pytest.param([("a", 0.5), ("a", 0.25)], (("a", 0.75),), id="a LoRA listed twice"),
        pytest.param([("b", -1.0), ("a", 2.0)], (("a", 2.0), ("b", -1.0)), id="sorted by key"),
        pytest.param([("a", 0.0), ("b", 1.0)], (("b", 1.0),), id="scale 0"),
        pytest.param([("a", 1.0), ("a", -1.0)], (), id="scales that sum to 0"),
        pytest.param([], (), id="no LoRAs"),
    ],
)
def test_scales_are_summed_per_lora(
    manager: LoraManager, scales: list[tuple[str, float]], summed: tuple[tuple[str, float], ...]
) -> None:
    active_loras = _acquire_scaled(manager, *scales)
    assert active_loras.scales == summed
    assert resident_keys(manager, LORAS) == {key for key, _ in summed}
    assert (active_loras is NO_LORAS) == (not summed)


def test_selection_has_the_slots_and_scales_of_its_loras(manager: LoraManager) -> None:
    active_loras = _acquire_scaled(manager, ("clip", 2.0), ("c", 0.5))
    selection = active_loras.selection
    assert selection is not None
    assert selection.layers == {"transformer.", "clip."}
    assert active_loras.clip_scales == (("clip", 2.0),)
    assert sorted(selection.scales.values()) == [0.5, 0.5, 0.5, 0.5, 2.0]
    assert 0 not in selection.scales


def test_weights_of_a_wrong_shape_take_no_slots(manager: LoraManager) -> None:
    wrong = LoraWeights(transformer={"": LowRank(torch.ones(8, WIDTH + 1), torch.ones(WIDTH, 8))}, clip={})
    with pytest.raises(ValueError, match="matrices"):
        manager.acquire(lora_requests(wrong=1.0), {"wrong": wrong})
    assert resident_keys(manager, LORAS) == set()
    _acquire_and_release(manager, ["all_slots"])
