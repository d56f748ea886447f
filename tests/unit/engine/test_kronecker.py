"""Kronecker products in LoRA slots, compared with the full matrix."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from serve.engine import quantize
from serve.engine.batch_invariance import batch_invariant
from serve.engine.lora_layers import LoraSlots, SlotSelection
from serve.engine.lora_manager import LoraManager
from serve.lora.weights import Kronecker, LoraWeights
from tests.unit.engine.loras import lora_requests, make_low_rank, resident_keys

CPU = torch.device("cpu")
IN, OUT = 96, 144
SLOT_BYTES = (IN + OUT) * 4
LAYER = "transformer.0"


def _make_kronecker(
    seed: int, outer: tuple[int, int] = (6, 4), inner: tuple[int, int] = (24, 24), first_row: int = 0, rows: int = OUT
) -> Kronecker:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(*outer, generator=generator), torch.randn(*inner, generator=generator)
    return Kronecker(a, b / (outer[1] * inner[1]) ** 0.5, first_row, rows, scale=0.5)


def _full(kronecker: Kronecker) -> Tensor:
    """The full matrix, in float64."""
    full = torch.kron(kronecker.outer.double(), kronecker.inner.double()) * kronecker.scale
    return full[kronecker.first_row : kronecker.first_row + kronecker.outputs]


class Adapted:
    """A network of one linear layer with slots, and its LoRAs."""

    def __init__(self, precision: str = "float32", slots: int = 40) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(IN, OUT)).requires_grad_(False)
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self.network.to(self.dtype)
        if precision == "fp8":
            quantize.quantize_to_float8(self.network, CPU)
        self.slots = LoraSlots({"transformer": self.network}, (slots + 1) * SLOT_BYTES)
        self.manager = LoraManager(self.slots)
        self.weights: dict[str, LoraWeights] = {}

    def add(self, key: str, kronecker: Kronecker, rank: int = 0, bias: bool = False) -> None:
        linear, generator = nn.Linear(IN, OUT), torch.Generator().manual_seed(len(key))
        low_rank = make_low_rank(linear, rank or 1, generator, bias=torch.ones(OUT) if bias else None)
        self.weights[key] = LoraWeights({"0": low_rank} if rank else {}, {}, (), {LAYER: kronecker})

    def run(self, inputs: Tensor, *scales: dict[str, float]) -> Tensor:
        """The outputs; `scales[i]` are the LoRAs of image i."""
        active = [self.manager.acquire(lora_requests(**each), self.weights) for each in scales]
        selections = [each.selection if each else None for each in active]
        with self.slots.apply(self.slots.batch(selections)), batch_invariant(CPU, len(inputs)):
            output: Tensor = self.network(inputs)
        for each in filter(None, active):
            self.manager.release(each)
        return output


def _inputs(images: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(images, 7, IN, generator=torch.Generator().manual_seed(9)).to(dtype)


SHAPES: Sequence[dict[str, object]] = [
    {"outer": (12, 8), "inner": (12, 12)},
    {"outer": (2, 3), "inner": (72, 32)},
    {"outer": (16, 8), "inner": (27, 12), "first_row": 0},
    {"outer": (6, 8), "inner": (27, 12), "first_row": 9},
    {"outer": (OUT, 1), "inner": (1, IN)},
    {"outer": (1, 1), "inner": (OUT, IN)},
]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("bf16", 0.02), ("fp8", 0.02)])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_layer_adds_the_kronecker_product_of_each_image(
    precision: str, tolerance: float, shapes: dict[str, object]
) -> None:
    adapted = Adapted(precision, slots=80)
    kronecker = _make_kronecker(1, **shapes)  # type: ignore[arg-type]
    adapted.add("one", kronecker)
    inputs = _inputs(3, adapted.dtype)
    added = (adapted.run(inputs, {"one": -2.0}, {}, {"one": 0.5}) - adapted.run(inputs, {}, {}, {})).double()
    product = inputs.double() @ _full(kronecker).t()
    expected = torch.stack((-2 * product[0], 0 * product[1], 0.5 * product[2]))
    assert torch.count_nonzero(added[1]) == 0
    assert (added - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("outputs", "inputs", "factor"), [(3072, 3072, 16), (12288, 3072, 16), (3072, 15360, 48)])
def test_product_at_the_geometry_of_flux(outputs: int, inputs: int, factor: int) -> None:
    linear = nn.Sequential(nn.Linear(inputs, outputs, bias=False)).requires_grad_(False)
    for weight in linear.parameters():
        weight.zero_()
    generator = torch.Generator().manual_seed(2)
    outer = torch.randn(factor, factor, generator=generator).bfloat16()
    inner = torch.randn(outputs // factor, inputs // factor, generator=generator).bfloat16()
    kronecker = Kronecker(outer, inner, 0, outputs, scale=0.01)
    slots = LoraSlots({"net": linear}, (kronecker.slots + 1) * (inputs + outputs) * 4)
    stored = slots.write_kroneckers(range(1, kronecker.slots + 1), {"net.0": kronecker})
    tokens = torch.randn(1, 3, inputs, generator=generator)
    with slots.apply(slots.batch([SlotSelection({}, frozenset(), {"net.0": [(stored["net.0"], 1.5)]})])):
        output = linear(tokens)
    rows = torch.cat([torch.kron(row[None].double(), inner.double()) @ tokens[0].double().t() for row in outer])
    expected = 0.015 * rows.t()
    assert (output[0] - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp8"])
def test_bits_of_an_image_do_not_depend_on_other_images_or_on_slot_numbers(precision: str) -> None:
    adapted, alone = Adapted(precision), Adapted(precision)
    adapted.add("first", _make_kronecker(1), rank=3)
    for each in (adapted, alone):
        each.add("second", _make_kronecker(2), rank=2, bias=True)
    inputs = _inputs(4, adapted.dtype)
    batched = adapted.run(inputs, {"first": 1.0}, {"second": 0.7}, {}, {"first": 1.0, "second": -1.0})
    assert torch.equal(batched[1:2], alone.run(inputs[1:2], {"second": 0.7}))
    assert torch.equal(batched[2:3], Adapted(precision).run(inputs[2:3], {}))
    assert not torch.equal(batched[3], batched[1])


def test_lora_with_both_kinds_of_change_adds_both() -> None:
    adapted = Adapted()
    adapted.add("both", _make_kronecker(1), rank=3, bias=True)
    weights, inputs = adapted.weights["both"], _inputs(1, torch.float32)
    low_rank = weights.transformer["0"]
    assert weights.slots == 3 + 1 + weights.kroneckers[LAYER].slots
    matrix = (low_rank.up @ low_rank.down).double() + _full(weights.kroneckers[LAYER])
    expected = 0.5 * (inputs.double() @ matrix.t() + 1)
    added = adapted.run(inputs, {"both": 0.5}) - adapted.run(inputs, {})
    torch.testing.assert_close(added.double(), expected, rtol=1e-4, atol=1e-5)


def test_slots_of_kronecker_products_are_evicted_and_reused() -> None:
    adapted = Adapted(slots=5)
    kronecker = _make_kronecker(1)
    assert kronecker.slots == 3
    for number in range(3):
        adapted.add("k" * (number + 1), _make_kronecker(number), rank=2)
    inputs = _inputs(1, torch.float32)
    first = adapted.run(inputs, {"k": 1.0})
    assert resident_keys(adapted.manager, adapted.weights) == {"k"}
    adapted.run(inputs, {"kk": 1.0})
    assert resident_keys(adapted.manager, adapted.weights) == {"kk"}
    assert torch.equal(adapted.run(inputs, {"k": 1.0}), first)
    assert torch.equal(adapted.run(inputs, {"k": 0.0}), Adapted().run(inputs, {}))


@pytest.mark.parametrize(
    ("kronecker", "layer", "slots"),
    [
        (_make_kronecker(1), "transformer.1", 3),
        (_make_kronecker(1), LAYER, 2),
        (_make_kronecker(1, inner=(24, 23)), LAYER, 9),
        (replace(_make_kronecker(1), first_row=1), LAYER, 9),
        (_make_kronecker(1, rows=OUT - 1), LAYER, 9),
    ],
    ids=["no such layer", "too few slots", "inputs", "rows", "outputs"],
)
def test_invalid_factors_raise_value_error(kronecker: Kronecker, layer: str, slots: int) -> None:
    with pytest.raises(ValueError, match=r"layer|factors"):
        Adapted().slots.write_kroneckers(range(1, slots + 1), {layer: kronecker})
