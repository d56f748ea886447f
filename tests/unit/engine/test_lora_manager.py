"""Which LoRAs stay on the device, and what a job draws with."""

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

ROWS = 10
WIDTH = 4


def _lora(rank: int, clip: bool = False) -> LoraWeights:
    layer = {"": LowRank(torch.full((rank, WIDTH), float(rank)), torch.ones(WIDTH, rank))}
    return LoraWeights(transformer={} if clip else layer, clip=layer if clip else {})


LORAS: Mapping[str, LoraWeights] = {
    "a": _lora(2),
    "b": _lora(3),
    "c": _lora(4),
    "d": _lora(5),
    "text": _lora(1, clip=True),
    "large": _lora(ROWS),
    "larger": _lora(ROWS + 1),
}


def _bank() -> LoraSlots:
    networks = {"transformer": nn.Linear(WIDTH, WIDTH), "clip": nn.Linear(WIDTH, WIDTH)}
    return LoraSlots(networks, (ROWS + 1) * 2 * 2 * WIDTH * 4)


@pytest.fixture
def adapters() -> LoraManager:
    return LoraManager(_bank())


def _take(adapters: LoraManager, keys: Iterable[str]) -> ActiveLoras | None:
    return adapters.acquire(lora_requests(**dict.fromkeys(keys, 1.0)), LORAS)


def _drawn(adapters: LoraManager, *jobs: Iterable[str]) -> None:
    """Jobs that take their LoRAs and leave them at once."""
    for keys in jobs:
        mix = _take(adapters, keys)
        assert mix is not None
        adapters.release(mix)


@pytest.mark.parametrize(
    ("jobs", "resident", "copies"),
    [
        pytest.param(["a", "a", "a"], "a", 1, id="one is brought once"),
        pytest.param(["a", "b", "d"], "abd", 3, id="as many as fit"),
        pytest.param(["a", "b", "d", "c"], "cd", 4, id="as few go as must, those not used for longest"),
        pytest.param(["a", "b", "d", "ab", "c"], "abc", 4, id="use keeps them"),
        pytest.param(["a", "b", "d", "bc"], "bc", 4, id="a job's own are not let go for it"),
        pytest.param(["a", "b", ["large"]], ["large"], 3, id="one that needs all"),
        pytest.param(["a", "b", "d", ["text"]], ["b", "d", "text"], 4, id="parts for the text take room as well"),
    ],
)
def test_those_used_last_stay(
    adapters: LoraManager, jobs: list[Iterable[str]], resident: Iterable[str], copies: int
) -> None:
    _drawn(adapters, *jobs)
    assert resident_keys(adapters, LORAS) == set(resident)
    assert adapters.loads == copies


def test_what_a_job_draws_with_stays_until_it_leaves(adapters: LoraManager) -> None:
    first, second = _take(adapters, "a"), _take(adapters, "ab")
    _drawn(adapters, "d")
    assert _take(adapters, "c") is not None
    assert resident_keys(adapters, LORAS) == {"a", "b", "c"}
    assert first is not None
    assert second is not None
    adapters.release(second)
    assert _take(adapters, "d") is None
    adapters.release(first)
    assert _take(adapters, "d") is not None
    assert resident_keys(adapters, LORAS) == {"c", "d"}


def test_who_gets_no_room_drives_nobody_away(adapters: LoraManager) -> None:
    _drawn(adapters, "a")
    assert _take(adapters, "d") is not None
    assert _take(adapters, ["large"]) is None
    assert resident_keys(adapters, LORAS) == {"a", "d"}


@pytest.mark.parametrize("keys", [["larger"], ["large", "a"], ["a", "b", "c", "text", "d"]])
def test_more_than_ever_fits_is_refused_with_the_figures(adapters: LoraManager, keys: list[str]) -> None:
    _drawn(adapters, "b")
    with pytest.raises(LorasTooLarge, match=rf"rank of {sum(LORAS[key].rank for key in keys)}, .* {ROWS} fit"):
        _take(adapters, keys)
    assert resident_keys(adapters, LORAS) == {"b"}


def test_what_lies_on_the_device_need_not_be_carried_and_what_does_not_is_named(adapters: LoraManager) -> None:
    _drawn(adapters, "a")
    assert adapters.acquire(lora_requests(a=1.0), {}) is not None
    assert not adapters.are_resident(lora_requests(a=1.0, b=1.0, c=1.0))
    with pytest.raises(LorasMissing) as caught:
        adapters.acquire(lora_requests(a=1.0, b=1.0, c=1.0), {"c": LORAS["c"]})
    assert caught.value.keys == ("b",)
    assert adapters.are_resident(lora_requests(a=1.0))


def _take_scaled(adapters: LoraManager, *scales: tuple[str, float]) -> ActiveLoras:
    mix = adapters.acquire([LoraRequest(key, scale) for key, scale in scales], LORAS)
    assert mix is not None
    return mix


@pytest.mark.parametrize(
    ("scales", "summed"),
    [
        pytest.param([("a", 0.5), ("a", 0.25)], (("a", 0.75),), id="the same twice adds up"),
        pytest.param([("b", -1.0), ("a", 2.0)], (("a", 2.0), ("b", -1.0)), id="in any order"),
        pytest.param([("a", 0.0), ("b", 1.0)], (("b", 1.0),), id="none at scale 0"),
        pytest.param([("a", 1.0), ("a", -1.0)], (), id="none that takes itself away"),
        pytest.param([], (), id="none"),
    ],
)
def test_scales_are_summed_for_each_lora(
    adapters: LoraManager, scales: list[tuple[str, float]], summed: tuple[tuple[str, float], ...]
) -> None:
    mix = _take_scaled(adapters, *scales)
    assert mix.scales == summed
    assert resident_keys(adapters, LORAS) == {key for key, _ in summed}
    assert (mix is NO_LORAS) == (not summed)


def test_a_blend_has_the_rows_of_its_loras_and_is_filled_up_with_none(adapters: LoraManager) -> None:
    mix = _take_scaled(adapters, ("text", 2.0), ("c", 0.5))
    assert mix.selection is not None
    assert mix.selection.layers == {"transformer.", "clip."}
    assert mix.clip_scales == (("text", 2.0),)
    assert mix.selection.slots.shape == mix.selection.gains.shape == (16,)
    gains = dict(zip(mix.selection.slots.tolist(), mix.selection.gains.tolist(), strict=True))
    assert sorted(gains.values()) == [0.0, 0.5, 0.5, 0.5, 0.5, 2.0]
    assert gains[0] == 0


def test_weights_that_do_not_fit_take_no_room(adapters: LoraManager) -> None:
    wrong = LoraWeights(transformer={"": LowRank(torch.ones(8, WIDTH + 1), torch.ones(WIDTH, 8))}, clip={})
    with pytest.raises(ValueError, match="matrices"):
        adapters.acquire(lora_requests(wrong=1.0), {"wrong": wrong})
    assert resident_keys(adapters, LORAS) == set()
    _drawn(adapters, ["large"])
