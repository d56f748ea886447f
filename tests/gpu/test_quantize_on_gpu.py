"""float8 quantization on a GPU: products as emulated, images close to bf16, and no Marlin kernels with quanto."""

import pytest
import torch
from optimum.quanto import QLinear
from optimum.quanto.tensor.weights.qbytes import WeightQBytesTensor
from torch import nn

from serve.engine.float8_linear import Float8Linear, emulated_rowwise_product, quantize_rows, rowwise_product
from serve.engine.fp8_kernel import MIN_CAPABILITY, choose_fp8_kernel
from serve.engine.quantize import quantize_to_float8, weight_bytes
from serve.settings import Fp8Kernel
from tests.gpu.helpers import DEVICE, SIZE, LoadOnGpu
from tests.images import psnr_db
from tests.unit.engine.requests import make_request, run_request

KERNELS = pytest.mark.parametrize("kernel", ["rowwise", "quanto"])


@pytest.fixture
def _float8_units() -> None:
    if torch.cuda.get_device_capability() < MIN_CAPABILITY:
        pytest.skip("needs a GPU with float8 units")


@pytest.mark.usefixtures("_float8_units")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(3072, 9216), (15360, 3072), (192, 64)], ids=["wide", "deep", "embedded"]
)
@pytest.mark.parametrize("shape", [(333,), (1, 333), (4, 512)])
def test_rowwise_product_equals_its_emulation(shape: tuple[int, ...], inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias, device=DEVICE, dtype=torch.bfloat16).requires_grad_(False)
    layer = Float8Linear(linear, rowwise_product)
    rows = torch.randn(*shape, inputs, device=DEVICE, dtype=torch.bfloat16)
    rows[..., 0] *= 100
    actual, expected = layer(rows).float(), emulated_rowwise_product(quantize_rows(rows), layer).float()
    assert actual.shape == (*shape, outputs)
    assert (actual - expected).norm() <= 0.01 * expected.norm()


@pytest.mark.usefixtures("_float8_units")
def test_compiled_rowwise_product_is_compiled_once_and_equals_its_emulation() -> None:
    torch.compiler.reset()
    linear = nn.Linear(1024, 512, device=DEVICE, dtype=torch.bfloat16).requires_grad_(False)
    layer = Float8Linear(linear, rowwise_product)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for tokens in (512, 4096, 777):
        rows = torch.randn(2, tokens, 1024, device=DEVICE, dtype=torch.bfloat16)
        with torch.compiler.set_stance("default" if tokens == 512 else "fail_on_recompile"):
            actual = compiled(rows).float()
        expected = emulated_rowwise_product(quantize_rows(rows), layer).float()
        assert (actual - expected).norm() <= 0.01 * expected.norm()


@pytest.mark.usefixtures("_float8_units")
def test_rowwise_is_chosen_where_the_gpu_has_float8_units(load_on_gpu: LoadOnGpu) -> None:
    assert choose_fp8_kernel("auto", load_on_gpu().transformer, torch.device(DEVICE)) == "rowwise"
    layer = load_on_gpu("dev", "fp8").transformer.transformer_blocks[0].attn.to_q
    assert isinstance(layer, Float8Linear)
    assert layer.weight.device.type == layer.scales.device.type == DEVICE


@KERNELS
@pytest.mark.parametrize("steps", [4, 28])
def test_fp8_images_are_close_to_bf16(load_on_gpu: LoadOnGpu, steps: int, kernel: Fp8Kernel) -> None:
    request = make_request(size=SIZE, steps=steps)
    pair = load_on_gpu("dev", "bf16"), load_on_gpu("dev", "fp8", fp8_kernel=kernel)
    (bf16,), (fp8,) = (run_request(checkpoint, request).pixels for checkpoint in pair)
    assert 35 <= psnr_db(bf16, fp8) < float("inf")


@pytest.mark.parametrize(("kernel", "ratio"), [("rowwise", 1.7), ("quanto", 1.8)])
def test_fp8_weights_take_little_more_than_half_the_memory(
    load_on_gpu: LoadOnGpu, kernel: Fp8Kernel, ratio: float
) -> None:
    bf16, fp8 = load_on_gpu("dev", "bf16"), load_on_gpu("dev", "fp8", fp8_kernel=kernel)
    assert weight_bytes(bf16.transformer) / weight_bytes(fp8.transformer) >= ratio


def test_no_weight_has_the_marlin_layout(load_on_gpu: LoadOnGpu) -> None:
    checkpoint = load_on_gpu("dev", "fp8", quantize_t5=True, fp8_kernel="quanto")
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
