"""LoRA slots in a network of two linear layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from serve.engine import quantize
from serve.engine.batch_invariance import batch_invariant
from serve.engine.float8_linear import Float8Linear, emulated_rowwise_product
from serve.engine.lora_layers import LoraSlots, SlotSelection
from serve.lora.weights import LowRank
from tests.unit.engine.loras import make_low_rank, write_to_slots

CPU = torch.device("cpu")
WIDTH, HIDDEN = 512, 96
PRECISIONS = ("float32", "bf16", "fp8", "fp8 rowwise")
FIRST, SECOND = "net.0", "net.2"
"""Names of the two linear layers."""


def _make_network(precision: str) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH, bias=False))
    if precision != "float32":
        network.bfloat16()
    if precision == "fp8":
        quantize.quantize_to_float8(network, CPU)
    if precision == "fp8 rowwise":
        for path, layer in list(network.named_modules()):
            if isinstance(layer, nn.Linear):
                network.set_submodule(path, Float8Linear(layer, emulated_rowwise_product))
    return network.eval().requires_grad_(False)


def _make_matrix(seed: int, rank: int, layer: str = FIRST, **fields: Any) -> LowRank:
    linear = nn.Linear(WIDTH, HIDDEN) if layer == FIRST else nn.Linear(HIDDEN, WIDTH)
    return make_low_rank(linear, rank, torch.Generator().manual_seed(seed), **fields)


def _make_inputs(images: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(images, 7, WIDTH, generator=torch.Generator().manual_seed(9)).to(dtype)


class SlottedNetwork:
    """A network of two linear layers with LoRA slots."""

    def __init__(self, precision: str = "float32", count: int = 40) -> None:
        self.network = _make_network(precision)
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        slot_bytes = 2 * (WIDTH + HIDDEN) * self.dtype.itemsize
        self.slots = LoraSlots({"net": self.network}, (count + 1) * slot_bytes)

    def first_layer(self, inputs: Tensor, *gains: dict[int, float]) -> Tensor:
        """Output of the first layer. `gains[i]` are the slots of image i with their gains; empty selects none."""
        selections = [SlotSelection(image_gains, frozenset({FIRST})) if image_gains else None for image_gains in gains]
        with self.slots.apply(self.slots.batch(selections)), batch_invariant(CPU, len(inputs)):
            output: Tensor = self.network[0](inputs)
            return output


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-6), ("bf16", 0.01), ("fp8", 0.01), ("fp8 rowwise", 0.01)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_layer_adds_the_selected_slots_of_each_image(precision: str, tolerance: float, dtype: torch.dtype) -> None:
    slotted = SlottedNetwork(precision)
    first, second = _make_matrix(1, rank=2, scale=0.5), _make_matrix(2, rank=20)
    bias = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(3))
    first = LowRank(first.down.to(dtype), first.up.to(dtype), first.scale, bias)
    second = LowRank(second.down.to(dtype), second.up.to(dtype), second.scale)
    write_to_slots(slotted.slots, [5, 2, 9], {FIRST: first})
    write_to_slots(slotted.slots, range(10, 30), {FIRST: second})
    inputs = _make_inputs(4, slotted.dtype)
    gains = [{}, {5: 0.7, 2: 0.7, 9: 0.7}, dict.fromkeys(range(10, 30), -2.0)]
    gains.append(gains[1] | gains[2])
    added = (slotted.first_layer(inputs, *gains) - slotted.first_layer(inputs, {}, {}, {}, {})).double()
    by_first, by_second = (m.scale * inputs.double() @ m.down.double().t() @ m.up.double().t() for m in (first, second))
    by_first += bias.double()
    expected = torch.stack(
        (0 * by_first[0], 0.7 * by_first[1], -2 * by_second[2], 0.7 * by_first[3] - 2 * by_second[3])
    )
    assert torch.count_nonzero(added[0]) == 0
    assert (added - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bits_of_an_image_do_not_depend_on_other_images_or_on_slot_numbers(precision: str) -> None:
    slotted = SlottedNetwork(precision)
    matrix, other = _make_matrix(1, rank=17), _make_matrix(2, rank=3)
    write_to_slots(slotted.slots, range(1, 18), {FIRST: matrix})
    write_to_slots(slotted.slots, range(40, 37, -1), {FIRST: other})
    write_to_slots(slotted.slots, range(37, 20, -1), {FIRST: matrix})
    low_slots, high_slots = dict.fromkeys(range(1, 18), 0.3), dict.fromkeys(range(37, 20, -1), 0.3)
    inputs = _make_inputs(4, slotted.dtype)
    batched = slotted.first_layer(inputs, low_slots, {}, {40: 1.0, 39: 1.0, 38: 1.0}, high_slots)
    assert torch.equal(batched[:1], slotted.first_layer(inputs[:1], low_slots))
    assert torch.equal(batched[1:2], slotted.first_layer(inputs[1:2], {}))
    assert torch.equal(batched[1:2], _make_network(precision)[0](inputs[1:2]))
    assert torch.equal(batched[3:], slotted.first_layer(inputs[3:], low_slots))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_network_weights_do_not_change(precision: str) -> None:
    slotted, before = SlottedNetwork(precision), _make_network(precision).state_dict()
    write_to_slots(
        slotted.slots, range(1, 5), {FIRST: _make_matrix(1, rank=4), SECOND: _make_matrix(2, rank=2, layer=SECOND)}
    )
    slotted.first_layer(_make_inputs(1, slotted.dtype), {1: 1.0, 2: 1.0})
    after = slotted.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bias_of_another_image_does_not_change_the_bits_of_an_image(precision: str) -> None:
    slotted = SlottedNetwork(precision)
    write_to_slots(slotted.slots, range(1, 4), {FIRST: _make_matrix(1, rank=3)})
    write_to_slots(slotted.slots, range(4, 8), {FIRST: _make_matrix(2, rank=3, bias=torch.ones(HIDDEN))})
    plain, biased = dict.fromkeys(range(1, 4), 0.3), dict.fromkeys(range(4, 8), 1.0)
    inputs = _make_inputs(3, slotted.dtype)
    batched = slotted.first_layer(inputs, biased, plain, {})
    assert torch.equal(batched[:1], slotted.first_layer(inputs[:1], biased))
    assert torch.equal(batched[1:2], slotted.first_layer(inputs[1:2], plain))
    assert torch.equal(batched[2:], _make_network(precision)[0](inputs[2:]))


def test_write_erases_the_previous_content_of_slots() -> None:
    """This includes layers without a new matrix, and slots above the rank of the new matrix."""
    reused, new = SlottedNetwork(), SlottedNetwork()
    biased = _make_matrix(2, rank=7, layer=SECOND, bias=torch.ones(WIDTH))
    write_to_slots(reused.slots, range(1, 9), {FIRST: _make_matrix(1, rank=8), SECOND: biased})
    for slotted in (reused, new):
        write_to_slots(slotted.slots, range(1, 9), {SECOND: _make_matrix(3, rank=2, layer=SECOND)})
    inputs, layers = _make_inputs(1, torch.float32), frozenset({FIRST, SECOND})
    outputs = []
    for slotted in (reused, new):
        with slotted.slots.apply(slotted.slots.batch([SlotSelection(dict.fromkeys(range(1, 9), 1.0), layers)])):
            outputs.append(slotted.network(inputs))
    assert torch.equal(*outputs)


def test_slots_are_inactive_after_an_error() -> None:
    slotted = SlottedNetwork()
    write_to_slots(slotted.slots, [1], {FIRST: _make_matrix(1, rank=1)})
    inputs = _make_inputs(1, torch.float32)
    plain = slotted.network(inputs)
    with (
        pytest.raises(RuntimeError),
        slotted.slots.apply(slotted.slots.batch([SlotSelection({1: 1.0}, frozenset({FIRST}))])),
    ):
        raise RuntimeError
    assert torch.equal(slotted.network(inputs), plain)


@pytest.mark.parametrize(
    ("layer", "matrix", "slot_count"),
    [
        pytest.param("net.1", _make_matrix(1, rank=2), 2, id="not a linear layer"),
        pytest.param(FIRST, _make_matrix(1, rank=2, layer=SECOND), 2, id="wrong shape"),
        pytest.param(FIRST, LowRank(torch.ones(2, WIDTH), torch.ones(HIDDEN, 3)), 3, id="different ranks"),
        pytest.param(FIRST, _make_matrix(1, rank=3), 2, id="too few slots"),
        pytest.param(FIRST, _make_matrix(1, rank=2, bias=torch.ones(HIDDEN)), 2, id="no slot for the bias"),
        pytest.param(FIRST, _make_matrix(1, rank=2, bias=torch.ones(WIDTH)), 3, id="bias of another length"),
    ],
)
def test_invalid_matrices_raise_value_error_before_anything_is_written(
    layer: str, matrix: LowRank, slot_count: int
) -> None:
    slotted = SlottedNetwork()
    write_to_slots(slotted.slots, [1, 2, 3], {SECOND: _make_matrix(1, rank=3, layer=SECOND)})
    selection = SlotSelection(dict.fromkeys((1, 2, 3), 1.0), frozenset({SECOND}))
    inputs = _make_inputs(1, torch.float32)
    with slotted.slots.apply(slotted.slots.batch([selection])):
        before = slotted.network(inputs)
        with pytest.raises(ValueError, match=r"net\.|linear"):
            write_to_slots(
                slotted.slots, range(1, slot_count + 1), {SECOND: _make_matrix(2, rank=1, layer=SECOND), layer: matrix}
            )
        assert torch.equal(slotted.network(inputs), before)


@pytest.mark.parametrize(
    ("size_bytes", "max_slots", "count"),
    [(0, None, 0), (10_000, 8, 1), (50_000, None, 9), (50_000 - 1, 9, 9), (50_000, 8, 8)],
)
def test_slots_are_limited_by_bytes_and_by_number(size_bytes: int, max_slots: int | None, count: int) -> None:
    """A slot of this network takes 4864 bytes in float32. Slot 0, which is always zero, takes as much."""
    slots = LoraSlots({"net": _make_network("float32")}, size_bytes, max_slots)
    assert (slots.slot_bytes, slots.count) == (4864, count)
