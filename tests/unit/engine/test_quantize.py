"""float8 weights: half the memory, nearly the same pictures, and never quanto's Marlin kernel."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from optimum.quanto import QLinear, freeze, qfloat8_e4m3fn, quantize
from optimum.quanto.library.extensions import extension
from optimum.quanto.tensor.weights import marlin
from optimum.quanto.tensor.weights.qbytes import WeightQBytesTensor
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from serve.engine.quantize import float8_weight, quantize_to_float8, weight_bytes
from serve.model_specs import ImageArray
from test_checkpoints.networks import Geometry
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.requests import make_request, run_request

CPU = torch.device("cpu")


class Layer(nn.Module):
    """A linear layer of a size that Marlin takes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear: Any = nn.Linear(128, 128, dtype=torch.bfloat16)
        self.requires_grad_(False)


def psnr_db(one: ImageArray, other: ImageArray) -> float:
    error = np.mean((one.astype(float) - other) ** 2)
    return float(10 * np.log10(255**2 / error))


def test_all_linears_of_the_transformer_are_float8_and_nothing_else_is(checkpoints: Checkpoints) -> None:
    transformer = checkpoints.get("dev", "fp8").transformer
    linears: list[Any] = [layer for layer in transformer.modules() if isinstance(layer, nn.Linear)]
    assert len(linears) == len([layer for layer in linears if isinstance(layer, QLinear)]) > 20
    assert {layer.weight._data.dtype for layer in linears} == {torch.float8_e4m3fn}
    others = [weight for weight in transformer.parameters() if type(weight.data) is torch.Tensor]
    assert {weight.dtype for weight in others} == {torch.bfloat16}
    assert isinstance(transformer.transformer_blocks[0].norm1.linear, QLinear), "modulation is most of a block"


def test_the_transformer_takes_little_more_than_half_the_memory(checkpoints: Checkpoints) -> None:
    pair = (checkpoints.get("dev", precision, geometry=Geometry()) for precision in ("bf16", "fp8"))
    full, half = (weight_bytes(checkpoint.transformer) for checkpoint in pair)
    assert full / half >= 1.8


def test_bytes_are_counted_as_they_are_stored() -> None:
    layer = Layer()
    assert weight_bytes(layer) == 2 * (128 * 128 + 128)
    quantize_to_float8(layer, CPU)
    scales, biases, scales_of_activations = 128, 128, 2
    assert weight_bytes(layer) == 128 * 128 + 2 * (scales + biases + scales_of_activations)


@pytest.mark.parametrize("steps", [4, 28])
def test_pictures_are_close_to_those_in_bf16_and_not_the_same(checkpoints: Checkpoints, steps: int) -> None:
    job = make_request(size=(128, 128), steps=steps)
    pair = (checkpoints.get("dev", precision, geometry=Geometry()) for precision in ("bf16", "fp8"))
    (full,), (half,) = (run_request(checkpoint, job).pixels for checkpoint in pair)
    assert not np.array_equal(full, half)
    assert psnr_db(full, half) >= 35


def test_t5_is_quantized_where_the_pool_says_so(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.get("dev", "fp8")
    assert not any(isinstance(layer, QLinear) for layer in checkpoint.t5.modules())
    t5 = copy.deepcopy(checkpoint.t5)
    quantize_to_float8(t5, CPU)
    ids = checkpoint.t5_tokenizer("a red sailboat", return_tensors="pt").input_ids
    with torch.no_grad():
        full, half = checkpoint.t5(ids).last_hidden_state.float(), t5(ids).last_hidden_state.float()
    assert all(isinstance(layer, QLinear) for layer in t5.modules() if isinstance(layer, nn.Linear))
    assert 0 < (full - half).norm() / full.norm() < 0.1


def test_the_bias_is_added() -> None:
    layer = Layer()
    weight, bias, inputs = (
        layer.linear.weight.float(),
        layer.linear.bias.float(),
        torch.randn(3, 128, dtype=torch.bfloat16),
    )
    quantize_to_float8(layer, CPU)
    expected = inputs.float() @ weight.T + bias
    assert (layer.linear(inputs).float() - expected).abs().max() < 0.1 * expected.abs().max()
    layer.linear.bias.add_(100)
    assert (layer.linear(inputs).float() - expected - 100).abs().max() < 1


def test_a_row_of_zeros_stays_so() -> None:
    layer = Layer()
    layer.linear.weight[5] = 0
    quantize_to_float8(layer, CPU)
    assert torch.equal(layer.linear.weight.dequantize()[5], torch.zeros(128, dtype=torch.bfloat16))


class MarlinChosen(Exception):
    pass


class _Marlin:
    def __init__(self, *args: object) -> None:
        raise MarlinChosen


@pytest.fixture
def faked_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU on which quanto would choose Marlin: tensors there have no content, so only choices can be tested."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(extension._extensions, "quanto_cuda", None)
    monkeypatch.setattr(marlin, "MarlinF8QBytesTensor", _Marlin)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.fixture
def quantos_own() -> WeightQBytesTensor:
    layer = Layer()
    quantize(layer, weights=qfloat8_e4m3fn)
    freeze(layer)
    weight: WeightQBytesTensor = layer.linear.weight
    return weight


@pytest.fixture
def ours() -> WeightQBytesTensor:
    layer = Layer()
    quantize_to_float8(layer, CPU)
    weight: WeightQBytesTensor = layer.linear.weight
    return weight


def test_left_to_itself_quanto_chooses_marlin(quantos_own: WeightQBytesTensor, faked_gpu: None) -> None:
    """Where this fails the trap has gone, and what guards against it may go too."""
    with pytest.raises(MarlinChosen):
        quantos_own.to("cuda:0")


def test_our_weights_never_get_marlin(ours: WeightQBytesTensor, faked_gpu: None) -> None:
    moved = ours.to("cuda:0")
    assert moved.device.type == moved._data.device.type == "cuda"
    for weight in (moved, moved.optimize(), moved.detach(), moved.to("cuda:1"), copy.copy(moved)):
        assert type(weight) is WeightQBytesTensor
        assert weight.activation_qtype == qfloat8_e4m3fn


def test_nor_do_weights_that_are_quantized_on_the_gpu(faked_gpu: None) -> None:
    weight = float8_weight(torch.empty(128, 128, dtype=torch.bfloat16, device="cuda:0"))
    assert type(weight) is WeightQBytesTensor
    assert weight.device.type == "cuda"
