"""float8 weights take half the memory, give nearly the same images, and never use quanto's Marlin kernel."""

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

from serve.engine.checkpoint import Checkpoint
from serve.engine.float8_linear import Float8Linear
from serve.engine.quantize import float8_weight, quantize_to_float8, weight_bytes
from serve.settings import Fp8Kernel
from test_checkpoints.networks import Geometry
from tests.images import psnr_db
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.requests import make_request, run_request

CPU = torch.device("cpu")


class Layer(nn.Module):
    """A linear layer of a size that Marlin supports."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear: Any = nn.Linear(128, 128, dtype=torch.bfloat16)
        self.requires_grad_(False)


def load_pair(checkpoints: Checkpoints, kernel: Fp8Kernel) -> tuple[Checkpoint, Checkpoint]:
    """A checkpoint in bf16, and the same one in fp8."""
    return checkpoints.get("dev", "bf16", geometry=Geometry()), checkpoints.get(
        "dev", "fp8", geometry=Geometry(), fp8_kernel=kernel
    )


def test_rows_quantize_the_blocks_and_keep_the_embedders(checkpoints: Checkpoints) -> None:
    transformer = checkpoints.get("dev", "fp8", fp8_kernel="rowwise").transformer
    rowwise = {path for path, layer in transformer.named_modules() if isinstance(layer, Float8Linear)}
    linears = {path for path, layer in transformer.named_modules() if isinstance(layer, nn.Linear)}
    assert {path.partition(".")[0] for path in rowwise} == {
        "transformer_blocks",
        "single_transformer_blocks",
        "norm_out",
    }
    assert {path.partition(".")[0] for path in linears - rowwise} == {
        "context_embedder",
        "proj_out",
        "time_text_embed",
        "x_embedder",
    }
    assert transformer.dtype == torch.bfloat16


def test_exactly_the_linear_layers_of_the_transformer_are_float8(checkpoints: Checkpoints) -> None:
    transformer = checkpoints.get("dev", "fp8").transformer
    linears: list[Any] = [layer for layer in transformer.modules() if isinstance(layer, nn.Linear)]
    assert len(linears) == len([layer for layer in linears if isinstance(layer, QLinear)]) > 20
    assert {layer.weight._data.dtype for layer in linears} == {torch.float8_e4m3fn}
    others = [weight for weight in transformer.parameters() if type(weight.data) is torch.Tensor]
    assert {weight.dtype for weight in others} == {torch.bfloat16}
    assert isinstance(transformer.transformer_blocks[0].norm1.linear, QLinear), (
        "the modulation has most of a block's weights"
    )


@pytest.mark.parametrize(("kernel", "ratio"), [("quanto", 1.8), ("rowwise", 1.7)])
def test_fp8_transformer_takes_little_more_than_half_the_memory(
    checkpoints: Checkpoints, kernel: Fp8Kernel, ratio: float
) -> None:
    bf16, fp8 = load_pair(checkpoints, kernel)
    assert weight_bytes(bf16.transformer) / weight_bytes(fp8.transformer) >= ratio


def test_weight_bytes_counts_stored_bytes() -> None:
    layer = Layer()
    assert weight_bytes(layer) == 2 * (128 * 128 + 128)
    quantize_to_float8(layer, CPU)
    scales, biases, activation_scales = 128, 128, 2
    assert weight_bytes(layer) == 128 * 128 + 2 * (scales + biases + activation_scales)


@pytest.mark.parametrize("kernel", ["quanto", "rowwise"])
@pytest.mark.parametrize("steps", [4, 28])
def test_fp8_images_are_close_to_bf16_images_but_not_equal(
    checkpoints: Checkpoints, steps: int, kernel: Fp8Kernel
) -> None:
    request = make_request(size=(128, 128), steps=steps)
    pair = load_pair(checkpoints, kernel)
    (bf16_pixels,), (fp8_pixels,) = (run_request(checkpoint, request).pixels for checkpoint in pair)
    assert not np.array_equal(bf16_pixels, fp8_pixels)
    assert psnr_db(bf16_pixels, fp8_pixels) >= 35


def test_t5_is_quantized_only_on_request(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints.get("dev", "fp8")
    assert not any(isinstance(layer, QLinear) for layer in checkpoint.t5.modules())
    t5 = copy.deepcopy(checkpoint.t5)
    quantize_to_float8(t5, CPU)
    ids = checkpoint.t5_tokenizer("a red sailboat", return_tensors="pt").input_ids
    with torch.no_grad():
        expected, quantized = checkpoint.t5(ids).last_hidden_state.float(), t5(ids).last_hidden_state.float()
    assert all(isinstance(layer, QLinear) for layer in t5.modules() if isinstance(layer, nn.Linear))
    assert 0 < (expected - quantized).norm() / expected.norm() < 0.1


def test_quantized_layer_adds_its_bias() -> None:
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


def test_row_of_zeros_is_preserved() -> None:
    layer = Layer()
    layer.linear.weight[5] = 0
    quantize_to_float8(layer, CPU)
    assert torch.equal(layer.linear.weight.dequantize()[5], torch.zeros(128, dtype=torch.bfloat16))


class MarlinSelected(Exception):
    pass


class _Marlin:
    def __init__(self, *args: object) -> None:
        raise MarlinSelected


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fake GPU for which quanto selects Marlin. Its tensors have no content, so only the selection can be tested."""
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(extension._extensions, "quanto_cuda", None)
    monkeypatch.setattr(marlin, "MarlinF8QBytesTensor", _Marlin)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.fixture
def quanto_weight() -> WeightQBytesTensor:
    layer = Layer()
    quantize(layer, weights=qfloat8_e4m3fn)
    freeze(layer)
    weight: WeightQBytesTensor = layer.linear.weight
    return weight


@pytest.fixture
def float8_layer_weight() -> WeightQBytesTensor:
    layer = Layer()
    quantize_to_float8(layer, CPU)
    weight: WeightQBytesTensor = layer.linear.weight
    return weight


def test_quanto_selects_marlin_by_default(quanto_weight: WeightQBytesTensor, fake_gpu: None) -> None:
    """If this fails, quanto has changed and `float8_weight` may no longer need its workaround."""
    with pytest.raises(MarlinSelected):
        quanto_weight.to("cuda:0")


def test_float8_weights_moved_to_a_gpu_do_not_use_marlin(
    float8_layer_weight: WeightQBytesTensor, fake_gpu: None
) -> None:
    moved = float8_layer_weight.to("cuda:0")
    assert moved.device.type == moved._data.device.type == "cuda"
    for weight in (moved, moved.optimize(), moved.detach(), moved.to("cuda:1"), copy.copy(moved)):
        assert type(weight) is WeightQBytesTensor
        assert weight.activation_qtype == qfloat8_e4m3fn


def test_weights_quantized_on_a_gpu_do_not_use_marlin(fake_gpu: None) -> None:
    weight = float8_weight(torch.empty(128, 128, dtype=torch.bfloat16, device="cuda:0"))
    assert type(weight) is WeightQBytesTensor
    assert weight.device.type == "cuda"
