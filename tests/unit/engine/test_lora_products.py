"""Products with LoRA slots: one for a batch against one for each image, and against a reference in float64."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from serve.engine.lora_layers import LoraSlots, SlotSelection
from serve.engine.lora_products import add_loras, sum_low_rank
from serve.lora.weights import LowRank
from tests.unit.engine.loras import make_low_rank, write_to_slots

WIDTHS = {"net.blocks.0.q": (48, 32), "net.blocks.0.k": (48, 32), "net.blocks.0.mlp": (48, 96)}
"""Inputs and outputs of layers with the same inputs."""
LAYERS = list(WIDTHS)
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 0.01}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
PRODUCTS = pytest.mark.parametrize("per_batch", [True, False], ids=["per batch", "per image"])


class Layers:
    """Linear layers of one block with LoRA slots."""

    def __init__(self, dtype: torch.dtype, per_batch: bool) -> None:
        self.linears = {name: nn.Linear(*widths, dtype=dtype) for name, widths in WIDTHS.items()}
        block = nn.Module()
        for name, linear in self.linears.items():
            block.add_module(name.rpartition(".")[2], linear)
        root = nn.Module()
        root.add_module("blocks", nn.ModuleList([block]))
        self.dtype = dtype
        self.slots = LoraSlots({"net": root}, 2**20, 63, product_per_batch=per_batch)

    def change(self, inputs: Tensor, outputs: list[Tensor], *selections: SlotSelection | None) -> list[Tensor]:
        """`outputs` of `LAYERS` with LoRAs added."""
        outputs = [output.clone() for output in outputs]
        loras = self.slots.batch(selections)
        if loras is not None:
            add_loras(loras, self.slots.groups[LAYERS[0]], LAYERS, inputs, outputs)
        return outputs


def _matrices(seed: int, rank: int, layers: list[str], biases: bool = False) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)
    matrices = {}
    for name in layers:
        inputs, outputs = WIDTHS[name]
        bias = torch.randn(outputs, generator=generator) if biases else None
        matrices[name] = make_low_rank(nn.Linear(inputs, outputs), rank, generator, scale=0.5, bias=bias)
    return matrices


FIRST, SECOND = _matrices(1, 5, LAYERS[:2]), _matrices(2, 20, LAYERS[1:], biases=True)
LORAS = (FIRST, range(1, 6), 0.7), (SECOND, range(10, 31), -1.5)


def _selection(*numbers: int) -> SlotSelection:
    scales = {slot: LORAS[number][2] for number in numbers for slot in LORAS[number][1]}
    return SlotSelection(scales, frozenset(name for number in numbers for name in LORAS[number][0]))


SELECTIONS = [_selection(0), None, _selection(1), _selection(0, 1)]


def _make(dtype: torch.dtype, per_batch: bool) -> Layers:
    layers = Layers(dtype, per_batch)
    for matrices, slots, _ in LORAS:
        write_to_slots(layers.slots, slots, matrices)
    return layers


def _inputs(dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Inputs of four images, and outputs without LoRAs."""
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(4, 7, 48, generator=generator).to(dtype)
    return inputs, [torch.randn(4, 7, WIDTHS[name][1], generator=generator).to(dtype) for name in LAYERS]


def _reference(matrices: Mapping[str, LowRank], name: str, inputs: Tensor) -> Tensor:
    if name not in matrices:
        return torch.zeros(inputs.shape[0], WIDTHS[name][1], dtype=torch.float64)
    matrix = matrices[name]
    product = matrix.scale * inputs.double() @ matrix.down.double().t() @ matrix.up.double().t()
    return product if matrix.bias is None else product + matrix.bias.double()


@PRODUCTS
@DTYPES
def test_outputs_equal_a_float64_reference(dtype: torch.dtype, per_batch: bool) -> None:
    layers, (inputs, outputs) = _make(dtype, per_batch), _inputs(dtype)
    changed = layers.change(inputs, outputs, *SELECTIONS)
    for name, output, actual in zip(LAYERS, outputs, changed, strict=True):
        for image, numbers in enumerate([(0,), (), (1,), (0, 1)]):
            added = sum(LORAS[number][2] * _reference(LORAS[number][0], name, inputs[image]) for number in numbers)
            expected = output[image].double() + added
            assert (actual[image].double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@DTYPES
def test_product_per_batch_equals_product_per_image(dtype: torch.dtype) -> None:
    inputs, outputs = _inputs(dtype)
    batch, image = (_make(dtype, per_batch).change(inputs, outputs, *SELECTIONS) for per_batch in (True, False))
    for one, other in zip(batch, image, strict=True):
        assert (one.float() - other.float()).abs().max() <= 2 * TOLERANCE[dtype] * other.float().abs().max()


@PRODUCTS
@DTYPES
def test_image_without_lora_keeps_its_bits_beside_images_with_loras(dtype: torch.dtype, per_batch: bool) -> None:
    layers, (inputs, outputs) = _make(dtype, per_batch), _inputs(dtype)
    changed = layers.change(inputs, outputs, *SELECTIONS)
    assert all(torch.equal(output[1], actual[1]) for output, actual in zip(outputs, changed, strict=True))
    assert not any(torch.equal(output[3], actual[3]) for output, actual in zip(outputs, changed, strict=True))


@PRODUCTS
@DTYPES
@pytest.mark.parametrize(("down", "up", "scale"), [(3e38, 3e38, 3e38), (3e38, 1.0, 1.0), (1.0, 3e38, 3e38)])
def test_overflow_in_a_lora_does_not_change_other_images(
    dtype: torch.dtype, per_batch: bool, down: float, up: float, scale: float
) -> None:
    layers, (inputs, outputs) = _make(dtype, per_batch), _inputs(dtype)
    inputs, outputs = inputs[:3], [output[:3] for output in outputs]
    name = LAYERS[0]
    huge = LowRank(torch.full((2, 48), down), torch.full((WIDTHS[name][1], 2), up), scale)
    write_to_slots(layers.slots, [40, 41], {name: huge})
    selection = SlotSelection({40: 1.0, 41: 1.0}, frozenset({name}))
    expected = layers.change(inputs, outputs, None, _selection(0), None)
    changed = layers.change(inputs, outputs, selection, _selection(0), None)
    for one, other in zip(expected, changed, strict=True):
        assert other[1:].isfinite().all()
        assert torch.equal(one[2], other[2])
        assert (one[1].float() - other[1].float()).abs().max() <= TOLERANCE[dtype] * one[1].float().abs().max()


def test_layers_with_the_same_inputs_share_a_product_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[torch.Size] = []
    multiply = torch.mm

    def record(inputs: Tensor, down: Tensor) -> Tensor:
        products.append(down.shape)
        return multiply(inputs, down)

    monkeypatch.setattr(torch, "mm", record)
    inputs, outputs = _inputs(torch.float32)
    for per_batch in (True, False):
        _make(torch.float32, per_batch).change(inputs, outputs, None, None, None, _selection(0, 1))
    assert products == [torch.Size((48, 3 * 32)), *[torch.Size((48, 32))] * 3]


@DTYPES
def test_sums_with_gathered_slots_equal_those_in_place(dtype: torch.dtype) -> None:
    layers, (inputs, outputs) = _make(dtype, per_batch=True), _inputs(dtype)
    before = [output.clone() for output in outputs]
    loras, group = layers.slots.batch(SELECTIONS), layers.slots.groups[LAYERS[0]]
    assert loras is not None
    (part,) = loras.parts
    columns = [(group.columns[name], output) for name, output in zip(LAYERS, outputs, strict=True)]
    summed = sum_low_rank(group.rows[part.slots], group.constants[part.slots], part.scales, columns, inputs)
    for one, other in zip(summed, layers.change(inputs, outputs, *SELECTIONS), strict=True):
        assert (one.float() - other.float()).abs().max() <= TOLERANCE[dtype] * other.float().abs().max()
    assert all(torch.equal(output, old) for output, old in zip(outputs, before, strict=True))
    assert all(torch.equal(output[1], old[1]) for output, old in zip(summed, before, strict=True))


def test_overflow_in_gathered_slots_does_not_change_other_images() -> None:
    layers, (inputs, outputs) = _make(torch.bfloat16, per_batch=True), _inputs(torch.bfloat16)
    name = LAYERS[0]
    huge = LowRank(torch.full((2, 48), 3e38), torch.full((WIDTHS[name][1], 2), 3e38), 3e38)
    write_to_slots(layers.slots, [40, 41], {name: huge})
    selection = SlotSelection({40: 1.0, 41: 1.0}, frozenset({name}))
    loras, group = layers.slots.batch([selection, None, None, None]), layers.slots.groups[name]
    assert loras is not None
    (part,) = loras.parts
    rows, constants = group.rows[part.slots], group.constants[part.slots]
    (summed,) = sum_low_rank(rows, constants, part.scales, [(group.columns[name], outputs[0])], inputs)
    assert torch.equal(summed[1:], outputs[0][1:])
