"""float8 weights: half the memory of bf16, at the price of turning them back for each product. Knows no checkpoint.

Weights only: activations, norms, biases and embeddings keep their dtype, so pictures stay close to those in bf16.
"""

import torch
from optimum.quanto import AbsmaxOptimizer, QLinear, QTensor, qfloat8_e4m3fn, quantize, quantize_weight
from torch import nn


def quantize_to_float8(model: nn.Module, device: torch.device) -> None:
    """Replaces all linear layers of `model` by float8 ones on `device`, in place; the rest of it moves there too.

    One layer at a time, so that the device never holds more than the float8 weights and a single bf16 layer.
    """
    quantize(model, weights=qfloat8_e4m3fn)
    for layer in model.modules():
        if isinstance(layer, QLinear):
            layer.weight = nn.Parameter(float8_weight(layer.weight.detach().to(device)), requires_grad=False)
    model.to(device)


def float8_weight(weight: torch.Tensor) -> torch.Tensor:
    """`weight` as quanto's float8 tensor, with one scale a row.

    quanto picks a kernel by what a weight says of the activations it will meet. If that is "not quantized", CUDA gets
    Marlin, a kernel that is compiled at first use and drops the bias. Ours say "float8", which has no kernel of its own
    and keeps the plain product; that takes bf16 activations as well. Moving and copying a weight keep what it says.
    """
    scale = AbsmaxOptimizer()(weight, qtype=qfloat8_e4m3fn, axis=0)
    scale = torch.where(scale == 0, 1, scale)  # A row of zeros: it must stay so, and not become 0/0.
    quantized: torch.Tensor = quantize_weight(
        weight, qtype=qfloat8_e4m3fn, axis=0, scale=scale, activation_qtype=qfloat8_e4m3fn
    )
    return quantized


def weight_bytes(model: nn.Module) -> int:
    """Bytes that parameters and buffers take, quantized ones by what they really hold."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(part.numel() * part.element_size() for tensor in tensors for part in _stored(tensor))


def _stored(tensor: torch.Tensor) -> list[torch.Tensor]:
    if not isinstance(tensor, QTensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [getattr(tensor, name) for name in names]
