"""Rows beside linears: what they add, to whom, and that nothing stays behind."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from serve.engine import quantize
from serve.engine.denoiser import batch_invariant
from serve.engine.lora_layers import LoraSlots
from serve.lora.weights import LowRank
from tests.unit.engine.loras import low_rank

CPU = torch.device("cpu")
WIDTH, HIDDEN = 512, 96
PRECISIONS = ("float32", "bf16", "fp8")
WIDEN, NARROW = "net.0", "net.2"


def _network(precision: str) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH, bias=False))
    if precision != "float32":
        network.bfloat16()
    if precision == "fp8":
        quantize.quantize_to_float8(network, CPU)
    return network.eval().requires_grad_(False)


def _matrix(seed: int, rank: int, layer: str = WIDEN, **fields: Any) -> LowRank:
    linear = nn.Linear(WIDTH, HIDDEN) if layer == WIDEN else nn.Linear(HIDDEN, WIDTH)
    return low_rank(linear, rank, torch.Generator().manual_seed(seed), **fields)


def _inputs(images: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(images, 7, WIDTH, generator=torch.Generator().manual_seed(9)).to(dtype)


class Bench:
    """A network with rows beside it, and its first linear alone."""

    def __init__(self, precision: str = "float32", rows: int = 40) -> None:
        self.network = _network(precision)
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        row_bytes = 2 * (WIDTH + HIDDEN) * self.dtype.itemsize
        self.bank = LoraSlots({"net": self.network}, (rows + 1) * row_bytes)

    def widened(self, inputs: Tensor, *gains: dict[int, float]) -> Tensor:
        """What the first linear gives; each image draws with rows at some gains, none with none of them."""
        blends = [self.bank.select(chosen, frozenset({WIDEN})) if chosen else None for chosen in gains]
        with self.bank.apply(blends), batch_invariant(CPU):
            widened: Tensor = self.network[0](inputs)
            return widened


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("bf16", 0.01), ("fp8", 0.01)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_image_gets_the_sum_of_its_own_rows(precision: str, tolerance: float, dtype: torch.dtype) -> None:
    bench = Bench(precision)
    first, second = _matrix(1, rank=3, scale=0.5), _matrix(2, rank=20)
    first, second = (LowRank(m.down.to(dtype), m.up.to(dtype), m.scale) for m in (first, second))
    bench.bank.write([5, 2, 9], {WIDEN: first})
    bench.bank.write(range(10, 30), {WIDEN: second})
    inputs = _inputs(4, bench.dtype)
    gains = [{}, {5: 0.7, 2: 0.7, 9: 0.7}, dict.fromkeys(range(10, 30), -2.0)]
    gains.append(gains[1] | gains[2])
    added = (bench.widened(inputs, *gains) - bench.widened(inputs, {}, {}, {}, {})).double()
    one, other = (m.scale * inputs.double() @ m.down.double().t() @ m.up.double().t() for m in (first, second))
    wanted = torch.stack((0 * one[0], 0.7 * one[1], -2 * other[2], 0.7 * one[3] - 2 * other[3]))
    assert torch.count_nonzero(added[0]) == 0
    assert (added - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_images_bits_do_not_depend_on_the_others_nor_on_where_its_rows_lie(precision: str) -> None:
    bench = Bench(precision)
    matrix, other = _matrix(1, rank=17), _matrix(2, rank=3)
    bench.bank.write(range(1, 18), {WIDEN: matrix})
    bench.bank.write(range(40, 37, -1), {WIDEN: other})
    bench.bank.write(range(37, 20, -1), {WIDEN: matrix})
    low, high = dict.fromkeys(range(1, 18), 0.3), dict.fromkeys(range(37, 20, -1), 0.3)
    inputs = _inputs(4, bench.dtype)
    together = bench.widened(inputs, low, {}, {40: 1.0, 39: 1.0, 38: 1.0}, high)
    assert torch.equal(together[:1], bench.widened(inputs[:1], low))
    assert torch.equal(together[1:2], bench.widened(inputs[1:2], {}))
    assert torch.equal(together[1:2], _network(precision)[0](inputs[1:2]))
    assert torch.equal(together[3:], bench.widened(inputs[3:], low))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_weight_changes(precision: str) -> None:
    bench, before = Bench(precision), _network(precision).state_dict()
    bench.bank.write(range(1, 5), {WIDEN: _matrix(1, rank=4), NARROW: _matrix(2, rank=2, layer=NARROW)})
    bench.widened(_inputs(1, bench.dtype), {1: 1.0, 2: 1.0})
    after = bench.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_rows_written_anew_keep_nothing_of_what_they_held() -> None:
    """Neither beside layers that the new one leaves out, nor above its rank."""
    used, fresh = Bench(), Bench()
    used.bank.write(range(1, 9), {WIDEN: _matrix(1, rank=8), NARROW: _matrix(2, rank=8, layer=NARROW)})
    for bench in (used, fresh):
        bench.bank.write(range(1, 9), {NARROW: _matrix(3, rank=2, layer=NARROW)})
    inputs, layers = _inputs(1, torch.float32), frozenset({WIDEN, NARROW})
    outputs = []
    for bench in (used, fresh):
        with bench.bank.apply([bench.bank.select(dict.fromkeys(range(1, 9), 1.0), layers)]):
            outputs.append(bench.network(inputs))
    assert torch.equal(*outputs)


def test_nothing_is_added_after_a_pass_that_failed() -> None:
    bench = Bench()
    bench.bank.write([1], {WIDEN: _matrix(1, rank=1)})
    inputs = _inputs(1, torch.float32)
    plain = bench.network(inputs)
    with pytest.raises(RuntimeError), bench.bank.apply([bench.bank.select({1: 1.0}, frozenset({WIDEN}))]):
        raise RuntimeError
    assert torch.equal(bench.network(inputs), plain)


@pytest.mark.parametrize(
    ("layer", "matrix", "rows"),
    [
        pytest.param("net.1", _matrix(1, rank=2), 2, id="no linear"),
        pytest.param(WIDEN, _matrix(1, rank=2, layer=NARROW), 2, id="another shape"),
        pytest.param(WIDEN, LowRank(torch.ones(2, WIDTH), torch.ones(HIDDEN, 3)), 3, id="two ranks"),
        pytest.param(WIDEN, _matrix(1, rank=3), 2, id="too few rows"),
    ],
)
def test_matrices_that_do_not_fit_are_refused_before_anything_is_written(
    layer: str, matrix: LowRank, rows: int
) -> None:
    bench = Bench()
    bench.bank.write([1, 2, 3], {NARROW: _matrix(1, rank=3, layer=NARROW)})
    blend = bench.bank.select(dict.fromkeys((1, 2, 3), 1.0), frozenset({NARROW}))
    inputs = _inputs(1, torch.float32)
    with bench.bank.apply([blend]):
        before = bench.network(inputs)
        with pytest.raises(ValueError, match=r"net\.|linear"):
            bench.bank.write(range(1, rows + 1), {NARROW: _matrix(2, rank=1, layer=NARROW), layer: matrix})
        assert torch.equal(bench.network(inputs), before)


@pytest.mark.parametrize(
    ("size_bytes", "max_rows", "rows"),
    [(0, None, 0), (10_000, 8, 1), (50_000, None, 9), (50_000 - 1, 9, 9), (50_000, 8, 8)],
)
def test_as_many_rows_as_fit_in_the_bytes(size_bytes: int, max_rows: int | None, rows: int) -> None:
    """A row of this network in float32 has 4864 bytes, and one more is kept at zero."""
    bank = LoraSlots({"net": _network("float32")}, size_bytes, max_rows)
    assert (bank.slot_bytes, bank.count) == (4864, rows)


def _counting_backend(compiled: list[int]) -> Callable[..., Any]:
    """Runs what the compiler traced as it is, and counts how often it had to trace."""

    def backend(graph: torch.fx.GraphModule, _: Sequence[Tensor]) -> Callable[..., Any]:
        compiled.append(1)
        return graph.forward

    return backend


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_compiled_network_is_compiled_once_for_all_loras(precision: str) -> None:
    """Once without any and once with: whichever images have one, at which scale, in which layers, in which rows."""
    bench = Bench(precision)
    bank, compiled = bench.bank, list[int]()
    network = torch.compile(bench.network, backend=_counting_backend(compiled))
    bank.write([1, 2], {WIDEN: _matrix(1, rank=2), NARROW: _matrix(2, rank=2, layer=NARROW)})
    bank.write(range(3, 10), {NARROW: _matrix(3, rank=7, layer=NARROW)})
    both, one = frozenset({WIDEN, NARROW}), frozenset({NARROW})
    first, second = bank.select({1: 1.0, 2: 1.0}, both), bank.select(dict.fromkeys(range(3, 10), -0.4), one)
    sum_of_both = bank.select(dict.fromkeys(range(1, 10), 0.5), both)
    inputs = _inputs(3, bench.dtype)
    passes = [
        (first, None, None),
        (None, second, first),
        (second, second, second),
        (sum_of_both, None, first),
        (sum_of_both, sum_of_both, None),
    ]
    with torch.no_grad():
        network(inputs)
        for blends in passes:
            bank.write([1, 2], {WIDEN: _matrix(len(compiled), rank=2)})
            with bank.apply(blends):
                assert torch.equal(network(inputs), bench.network(inputs))
        network(inputs)
    assert len(compiled) == 2
