"""Quantizes linear layers to float8, which takes half the memory of bf16.

With the kernel `quanto`, only weights are quantized, and each product converts them back. The other kernels multiply in
float8. Norms, biases and embeddings keep their dtype.
"""

import torch
from optimum.quanto import AbsmaxOptimizer, QLinear, QTensor, qfloat8_e4m3fn, quantize, quantize_weight
from torch import nn

from serve.engine.float8_linear import Float8Linear
from serve.engine.fp8_kernel import PRODUCTS, KernelName, rowwise_layers


def quantize_network(network: nn.Module, kernel: KernelName, device: torch.device) -> None:
    """Quantizes `network` in place for `kernel`, layer by layer, and moves it to `device`."""
    if kernel == "quanto":
        quantize_to_float8(network, device)
        return
    for path, layer in list(rowwise_layers(network)):
        network.set_submodule(path, Float8Linear(layer.to(device), PRODUCTS[kernel]))
    network.to(device)


def quantize_to_float8(model: nn.Module, device: torch.device) -> None:
    """Quantizes the weights of all linear layers of `model` in place, with quanto, and moves the model to `device`.

    One layer at a time, so that the device never holds more than the float8 weights and one bf16 layer.
    """
    quantize(model, weights=qfloat8_e4m3fn)
    for layer in model.modules():
        if isinstance(layer, QLinear):
            layer.weight = nn.Parameter(float8_weight(layer.weight.detach().to(device)), requires_grad=False)
    model.to(device)


def round_to_float8(model: nn.Module) -> None:
    """Rounds the weights of all linear layers of `model` in place to the values that they have in float8.

    They keep their dtype and memory, so products need no conversion.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(float8_weight(layer.weight.detach()).dequantize(), requires_grad=False)


def float8_weight(weight: torch.Tensor) -> torch.Tensor:
    """`weight` as quanto's float8 tensor, with one scale per row.

    quanto chooses a kernel by the activation type that a weight declares. For unquantized activations CUDA gets
    Marlin, which is compiled at first use and drops the bias. Weights here declare float8 activations, for which
    quanto has no special kernel, so it uses the plain product; that accepts bf16 activations too. Moving and copying a
    weight keep the declaration.
    """
    scale = AbsmaxOptimizer()(weight, qtype=qfloat8_e4m3fn, axis=0)
    scale = torch.where(scale == 0, 1, scale)  # A row of zeros must stay zero instead of becoming 0/0.
    quantized: torch.Tensor = quantize_weight(
        weight, qtype=qfloat8_e4m3fn, axis=0, scale=scale, activation_qtype=qfloat8_e4m3fn
    )
    return quantized


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, quantized ones as they are stored."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(part.numel() * part.element_size() for tensor in tensors for part in _stored_tensors(tensor))


def _stored_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    if not isinstance(tensor, QTensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [getattr(tensor, name) for name in names]
