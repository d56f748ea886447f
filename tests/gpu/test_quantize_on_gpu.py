"""float8 on the card: pictures as in bf16, biases added, and not by Marlin."""

import pytest
import torch
from optimum.quanto import QLinear
from optimum.quanto.tensor.weights.qbytes import WeightQBytesTensor
from torch import nn

from serve.engine.quantize import quantize_to_float8, weight_bytes
from tests.gpu.conftest import DEVICE, Load
from tests.gpu.test_engine_on_gpu import SIZE, psnr_db
from tests.unit.engine.requests import make_request, run_request


@pytest.mark.parametrize("steps", [4, 28])
def test_pictures_are_close_to_those_in_bf16(on_gpu: Load, steps: int) -> None:
    job = make_request(size=SIZE, steps=steps)
    (full,), (half,) = (run_request(on_gpu("dev", precision), job).pixels for precision in ("bf16", "fp8"))
    assert 35 <= psnr_db(full, half) < float("inf")


def test_it_takes_little_more_than_half_the_memory(on_gpu: Load) -> None:
    full, half = (weight_bytes(on_gpu("dev", precision).transformer) for precision in ("bf16", "fp8"))
    assert full / half >= 1.8


def test_no_weight_is_laid_out_for_marlin(on_gpu: Load) -> None:
    checkpoint = on_gpu("dev", "fp8", quantize_t5=True)
    layers = [
        layer
        for network in (checkpoint.transformer, checkpoint.t5)
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    ]
    assert {type(layer.weight.data) for layer in layers} == {WeightQBytesTensor}
    assert {layer.weight.device.type for layer in layers} == {DEVICE}


@pytest.mark.parametrize("moved_after", [False, True], ids=["quantized on the card", "quantized before it moved"])
def test_the_bias_is_added(moved_after: bool) -> None:
    """Of a layer whose size Marlin takes: that kernel would leave the bias out."""
    linear = nn.Linear(256, 256, dtype=torch.bfloat16).requires_grad_(False)
    linear.bias.add_(100)
    inputs = torch.randn(64, 256, dtype=torch.bfloat16)
    expected = linear(inputs).float()
    model = nn.Sequential(linear)
    quantize_to_float8(model, torch.device("cpu" if moved_after else DEVICE))
    layer = model.to(DEVICE)[0]
    assert isinstance(layer, QLinear)
    assert (layer(inputs.to(DEVICE)).cpu().float() - expected).abs().max() < 2
