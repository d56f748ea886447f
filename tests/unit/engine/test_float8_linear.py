"""The float8 linear layer against an independent reference: rounding, scales, products, and compilation."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from serve.engine import float8_linear
from serve.engine.batch_invariance import batch_invariant
from serve.engine.float8_linear import (
    FLOAT8,
    Float8Linear,
    Product,
    QuantizedRows,
    compute_dtype,
    emulated_rowwise_product,
    multiply,
    quantize_rows,
    rowwise_product,
)

Array = NDArray[np.float64]
PRODUCTS = pytest.mark.parametrize("product", [rowwise_product, emulated_rowwise_product])
INPUTS, OUTPUTS = 96, 64


def e4m3_numbers() -> Array:
    """All finite numbers of e4m3 in ascending order: 3 bits of mantissa, exponents from -6, subnormals below."""
    subnormals = [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    normals = [(1 + mantissa / 8) * 2.0**exponent for exponent in range(-6, 9) for mantissa in range(8)]
    positive = np.array([*subnormals, *normals[:-1]])  # The last code is NaN.
    return np.concatenate([-positive[:0:-1], positive])


def nearest_e4m3(values: Array) -> Array:
    """The nearest e4m3 number; of two, the one with an even mantissa."""
    numbers = e4m3_numbers()
    upper = np.clip(np.searchsorted(numbers, values), 1, len(numbers) - 1)
    below, above = numbers[upper - 1], numbers[upper]
    # The codes of positive numbers are their indices from zero on, so the parity of a code is that of the distance.
    above_is_even = (upper - len(numbers) // 2) % 2 == 0
    takes_above = np.where(above - values == values - below, above_is_even, above - values < values - below)
    return np.where(takes_above, above, below)


def reference_rows(rows: Tensor) -> Array:
    """`rows` as they are in float8, multiplied by their scales again, in float64."""
    values = rows.double().numpy()
    scales = (np.abs(values).max(-1, keepdims=True).astype(np.float32) / np.float32(448)).astype(np.float32)
    quotients = (values.astype(np.float32) / scales).astype(np.float64)
    rounded: Array = nearest_e4m3(quotients) * scales
    return rounded


def make_layer(
    product: Product = emulated_rowwise_product, bias: bool = True, dtype: torch.dtype = torch.bfloat16
) -> tuple[nn.Linear, Float8Linear]:
    torch.manual_seed(0)
    layer = nn.Linear(INPUTS, OUTPUTS, bias, dtype=dtype).requires_grad_(False)
    return layer, Float8Linear(layer, product)


def make_inputs(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_are_rounded_to_the_nearest_float8_number(dtype: torch.dtype) -> None:
    rows = make_inputs(50, dtype=dtype) * torch.logspace(-6, 4, 50)[:, None].to(dtype)
    values, scales = quantize_rows(rows)
    assert (values.dtype, scales.dtype, scales.shape) == (FLOAT8, torch.float32, (50, 1))
    assert torch.equal(scales[:, 0], rows.float().abs().max(-1).values / 448)
    np.testing.assert_array_equal(values.double().numpy() * scales.numpy(), reference_rows(rows))


def test_largest_value_of_each_row_becomes_448() -> None:
    values, _ = quantize_rows(make_inputs(1000, dtype=torch.float32))
    assert set(values.float().abs().amax(-1).tolist()) == {448}


@PRODUCTS
def test_rows_of_zeros_stay_zero(product: Product) -> None:
    layer, _ = make_layer()
    layer.weight[5] = 0
    inputs = make_inputs(3)
    inputs[1] = 0
    outputs = Float8Linear(layer, product)(inputs)
    assert torch.equal(outputs[:, 5], layer.bias[5].expand(3))
    assert torch.equal(outputs[1], layer.bias)


@PRODUCTS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (2, 5)])
def test_product_is_that_of_the_rounded_rows(product: Product, bias: bool, shape: tuple[int, ...]) -> None:
    layer, quantized = make_layer(product, bias)
    inputs = make_inputs(*shape)
    expected = reference_rows(inputs) @ reference_rows(layer.weight).T
    if bias:
        expected += layer.bias.double().numpy()
    outputs = quantized(inputs)
    assert (outputs.shape, outputs.dtype) == ((*shape, OUTPUTS), torch.bfloat16)
    difference = np.linalg.norm(outputs.double().numpy() - expected)
    assert difference < 0.003 * np.linalg.norm(expected), "more than rounding to bf16"


def test_emulation_keeps_float32() -> None:
    layer, quantized = make_layer(dtype=torch.float32)
    inputs = make_inputs(4, dtype=torch.float32)
    expected = reference_rows(inputs) @ reference_rows(layer.weight).T + layer.bias.double().numpy()
    np.testing.assert_allclose(quantized(inputs).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("plain_layers", "quantizations"), [(0, 1), (1, 2)])
def test_inputs_that_float8_layers_share_are_quantized_once(
    monkeypatch: pytest.MonkeyPatch, plain_layers: int, quantizations: int
) -> None:
    layer, quantized = make_layer()
    layers, inputs = [quantized, quantized, *[layer] * plain_layers], make_inputs(2, 5)
    expected = [each(inputs) for each in layers]
    rows: list[Tensor] = []

    def quantize(inputs: Tensor) -> QuantizedRows:
        rows.append(inputs)
        return quantize_rows(inputs)

    monkeypatch.setattr(float8_linear, "quantize_rows", quantize)
    outputs = multiply(inputs, layers)
    assert all(torch.equal(output, other) for output, other in zip(outputs, expected, strict=True))
    assert len(rows) == quantizations


def test_layer_is_a_linear_layer_with_float8_weights() -> None:
    layer, quantized = make_layer()
    assert isinstance(quantized, nn.Linear)
    assert (quantized.in_features, quantized.out_features) == (INPUTS, OUTPUTS)
    assert (quantized.weight.dtype, quantized.weight.requires_grad) == (FLOAT8, False)
    assert compute_dtype(quantized) == compute_dtype(layer) == torch.bfloat16
    assert sum(tensor.nbytes for tensor in quantized.state_dict().values()) == INPUTS * OUTPUTS + OUTPUTS * (4 + 2)


def test_emulated_images_of_a_batch_are_bit_equal_to_single_images() -> None:
    _, quantized = make_layer(dtype=torch.float32)
    inputs = make_inputs(3, 40, dtype=torch.float32)
    with batch_invariant(torch.device("cpu"), images=2):
        batched = quantized(inputs)
    assert torch.equal(batched, torch.cat([quantized(image[None]) for image in inputs]))


@PRODUCTS
@pytest.mark.usefixtures("_fresh_compiler")
def test_layer_is_compiled_once_for_all_numbers_of_rows(product: Product) -> None:
    _, quantized = make_layer(product)
    counter = CompileCounter()
    compiled = torch.compile(quantized, backend=counter, fullgraph=True, dynamic=True)
    for images, tokens in ((2, 40), (3, 56), (2, 9)):
        inputs = make_inputs(images, tokens)
        assert torch.equal(compiled(inputs), quantized(inputs))
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fake_gpu")
def test_arguments_of_the_product_suit_a_gpu() -> None:
    layer = nn.Linear(INPUTS, OUTPUTS, device="meta")
    layer.weight = nn.Parameter(torch.empty(OUTPUTS, INPUTS, device="cuda", dtype=torch.bfloat16))
    layer.bias = nn.Parameter(torch.empty(OUTPUTS, device="cuda", dtype=torch.bfloat16))
    layer.requires_grad_(False)  # Without a GPU, torch aborts in a backward function for one.
    outputs = Float8Linear(layer, rowwise_product)(torch.empty(2, 5, INPUTS, device="cuda", dtype=torch.bfloat16))
    assert (outputs.shape, outputs.dtype, outputs.device.type) == ((2, 5, OUTPUTS), torch.bfloat16, "cuda")
