"""A linear layer that multiplies float8 weights with float8 activations, with one scale per row of both."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

FLOAT8 = torch.float8_e4m3fn
SIDE_MULTIPLE = 16
"""`torch._scaled_mm` multiplies only weights whose sides are multiples of this."""
_MIN_SCALE = 1e-12
"""A row of zeros stays zero instead of becoming 0/0."""


class QuantizedRows(NamedTuple):
    """Rows in float8."""

    values: Tensor
    """[..., width]"""
    scales: Tensor
    """[..., 1], float32."""


Product = Callable[[QuantizedRows, "Float8Linear"], Tensor]
"""The outputs of a layer, from its inputs."""


class Float8Linear(nn.Linear):
    """A copy of a linear layer with e4m3 weights, and a scale in float32 for each of their rows.

    Inputs, outputs and the bias have the dtype of the original layer, `compute_dtype`. The product has no
    data-dependent branches, so `torch.compile` traces it in one graph, for any number of rows.
    """

    scales: Tensor
    """[out_features, 1]."""

    def __init__(self, layer: nn.Linear, product: Product) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        weight, scales = quantize_rows(layer.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("scales", scales)
        self.compute_dtype = layer.weight.dtype
        self._product = product

    def forward(self, inputs: Tensor) -> Tensor:
        return self.multiply(quantize_rows(inputs))

    def multiply(self, inputs: QuantizedRows) -> Tensor:
        return self._product(inputs, self)


def multiply(inputs: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
    """The outputs of layers with the same inputs, which are quantized once. Skips the layers' hooks."""
    float8_layers = [layer for layer in layers if isinstance(layer, Float8Linear)]
    if len(float8_layers) < len(layers):
        return [layer.forward(inputs) for layer in layers]
    rows = quantize_rows(inputs)
    return [layer.multiply(rows) for layer in float8_layers]


def compute_dtype(layer: nn.Linear) -> torch.dtype:
    """The dtype of the layer's inputs and outputs."""
    return layer.compute_dtype if isinstance(layer, Float8Linear) else layer.weight.dtype


def quantize_rows(rows: Tensor) -> QuantizedRows:
    """`rows` in float8. Their scales are max |row| / 448, the largest float8 number."""
    scales = rows.abs().amax(-1, keepdim=True).float() / torch.finfo(FLOAT8).max
    scales = scales.clamp(min=_MIN_SCALE)
    # Rounding may make the largest quotient slightly larger than 448; the conversion rounds it to 448.
    return QuantizedRows((rows.float() / scales).to(FLOAT8), scales)


def rowwise_product(inputs: QuantizedRows, layer: Float8Linear) -> Tensor:
    """The product in float8. On a GPU it needs capability 8.9 or higher, and a layer that computes in bf16.

    cuBLAS has no kernel for a few rows, such as 16, of a deep layer with a bias; blocks have hundreds.
    """
    outputs: Tensor = torch._scaled_mm(
        inputs.values.flatten(0, -2),
        layer.weight.t(),
        scale_a=inputs.scales.flatten(0, -2),
        scale_b=layer.scales.t(),
        bias=layer.bias,
        out_dtype=layer.compute_dtype,
        use_fast_accum=True,
    )
    return outputs.view(*inputs.values.shape[:-1], layer.out_features)


def emulated_rowwise_product(inputs: QuantizedRows, layer: Float8Linear) -> Tensor:
    """The product of the same float8 numbers in float32, on any device."""
    # The images of a batch stay apart, because on a CPU the denoiser multiplies them one by one.
    outputs = linear(inputs.values.float(), layer.weight.float()) * inputs.scales * layer.scales.t()
    return (outputs if layer.bias is None else outputs + layer.bias).to(layer.compute_dtype)
