"""float8 quantization on a GPU: images close to bf16, biases applied, and Marlin kernels not used."""

import pytest
import torch
from optimum.quanto import QLinear
from optimum.quanto.tensor.weights.qbytes import WeightQBytesTensor
from torch import nn

from serve.engine.quantize import quantize_to_float8, weight_bytes
from tests.gpu.helpers import DEVICE, SIZE, LoadOnGpu
from tests.images import psnr_db
from tests.unit.engine.requests import make_request, run_request


@pytest.mark.parametrize("steps", [4, 28])
def test_fp8_images_are_close_to_bf16(load_on_gpu: LoadOnGpu, steps: int) -> None:
    request = make_request(size=SIZE, steps=steps)
    (bf16,), (fp8,) = (run_request(load_on_gpu("dev", precision), request).pixels for precision in ("bf16", "fp8"))
    assert 35 <= psnr_db(bf16, fp8) < float("inf")


def test_fp8_weights_take_little_more_than_half_the_memory(load_on_gpu: LoadOnGpu) -> None:
    bf16, fp8 = (weight_bytes(load_on_gpu("dev", precision).transformer) for precision in ("bf16", "fp8"))
    assert bf16 / fp8 >= 1.8


def test_no_weight_has_the_marlin_layout(load_on_gpu: LoadOnGpu) -> None:
    checkpoint = load_on_gpu("dev", "fp8", quantize_t5=True)
    layers = [
        layer
        for network in (checkpoint.transformer, checkpoint.t5)
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    ]
    assert {type(layer.weight.data) for layer in layers} == {WeightQBytesTensor}
    assert {layer.weight.device.type for layer in layers} == {DEVICE}


@pytest.mark.parametrize(
    "quantized_before_move", [False, True], ids=["quantized on the GPU", "quantized before the move"]
)
def test_bias_is_applied(quantized_before_move: bool) -> None:
    """The layer has a size that Marlin supports, because quanto's Marlin kernel ignores the bias."""
    linear = nn.Linear(256, 256, dtype=torch.bfloat16).requires_grad_(False)
    linear.bias.add_(100)
    inputs = torch.randn(64, 256, dtype=torch.bfloat16)
    expected = linear(inputs).float()
    model = nn.Sequential(linear)
    quantize_to_float8(model, torch.device("cpu" if quantized_before_move else DEVICE))
    layer = model.to(DEVICE)[0]
    assert isinstance(layer, QLinear)
    assert (layer(inputs.to(DEVICE)).cpu().float() - expected).abs().max() < 2
