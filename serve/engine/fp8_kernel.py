"""Chooses how the float8 layers of a transformer multiply, by what the device has."""

import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from serve.engine.float8_linear import (
    SIDE_MULTIPLE,
    Float8Linear,
    Product,
    emulated_rowwise_product,
    quantize_rows,
    rowwise_product,
)
from serve.settings import Fp8Kernel

KernelName = Literal["rowwise", "emulated", "quanto"]
PRODUCTS: dict[KernelName, Product] = {"rowwise": rowwise_product, "emulated": emulated_rowwise_product}
"""quanto has layers of its own."""
Capability = tuple[int, int]
MIN_CAPABILITY: Capability = (8, 9)
"""The first NVIDIA GPUs with float8 units."""
MAX_ERROR = 0.02
"""Between the device's product and its emulation, relative to the latter: rounding to bf16 alone gives 0.002."""
_QUANTIZED = ("transformer_blocks.", "single_transformer_blocks.", "norm_out.")
"""The layers outside have 0.4 % of the weights of FLUX.1. In float8, each kind would add a quarter to the error."""
_CHECKED_ROWS = (1, 77)
"""Modulation has one row for each image."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KernelChoice:
    kernel: KernelName
    reason: str


def choose_fp8_kernel(setting: Fp8Kernel, transformer: nn.Module, device: torch.device) -> KernelName:
    """The kernel for `transformer`, which is still in its compute dtype, on `device`.

    A kernel in float8 is run once; if it fails or its result is wrong, quanto is chosen.
    """
    layers = [layer for _, layer in rowwise_layers(transformer)]
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    choice = choose(setting, capability, layers[0].weight.dtype if layers else None)
    if choice.kernel == "rowwise":
        why = find_fault(Float8Linear(deepcopy(layers[0]).to(device), rowwise_product))
        if why is not None:
            _log.warning("the product in float8 does not work here, so quanto multiplies in the compute dtype: %s", why)
            choice = KernelChoice("quanto", "the product in float8 failed its check")
    _log.info("float8 kernel: %s, because %s", choice.kernel, choice.reason)
    return choice.kernel


def choose(setting: Fp8Kernel, capability: Capability | None, dtype: torch.dtype | None) -> KernelChoice:
    """The kernel for a GPU of this capability, or for a CPU (None), and for layers of this dtype (None: no layers)."""
    if setting == "quanto":
        return KernelChoice("quanto", "it is set")
    if dtype is None:
        return KernelChoice("quanto", f"no layer has sides that are multiples of {SIDE_MULTIPLE}")
    obstacle = _obstacle(capability, dtype)
    if obstacle is None:
        return KernelChoice("rowwise", "the GPU has float8 units")
    return KernelChoice("emulated" if setting == "rowwise" else "quanto", obstacle)


def _obstacle(capability: Capability | None, dtype: torch.dtype) -> str | None:
    """Why the device cannot multiply in float8."""
    if capability is None:
        return "a CPU has no float8 units"
    if capability < MIN_CAPABILITY:
        return f"the GPU's capability is {capability[0]}.{capability[1]}, and float8 units need 8.9"
    return None if dtype == torch.bfloat16 else f"the compute dtype is {dtype}, and the product in float8 gives bf16"


def find_fault(layer: Float8Linear) -> str | None:
    """Why the layer's product cannot be used, compared with its emulation; None if it is right."""
    generator = torch.Generator().manual_seed(0)
    try:
        for rows in _CHECKED_ROWS:
            inputs = torch.randn(1, rows, layer.in_features, generator=generator)
            error = _error(layer, inputs.to(layer.weight.device, layer.compute_dtype))
            if not error <= MAX_ERROR:  # NaN too.
                return f"its relative error is {error:.3f}"
    except Exception as failure:
        return f"{type(failure).__name__}: {failure}"
    return None


@torch.no_grad()
def _error(layer: Float8Linear, inputs: Tensor) -> float:
    actual, expected = layer(inputs).float(), emulated_rowwise_product(quantize_rows(inputs), layer).float()
    return float((actual - expected).norm() / expected.norm())


def rowwise_layers(transformer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers, by path, that are multiplied in float8, rowwise; all others stay in the compute dtype."""
    for path, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear) and path.startswith(_QUANTIZED) and _has_suitable_sides(layer):
            yield path, layer


def _has_suitable_sides(layer: nn.Linear) -> bool:
    return layer.in_features % SIDE_MULTIPLE == layer.out_features % SIDE_MULTIPLE == 0
