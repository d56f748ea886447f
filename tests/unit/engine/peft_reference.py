"""LoRAs through diffusers and peft, as the reference for the engine's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from serve.engine.checkpoint import Checkpoint
from serve.lora.weights import LoraWeights
from tests.unit.engine import diffusers_reference


def _diffusers_state_dict(lora: LoraWeights) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for network, layers in (("transformer", lora.transformer), ("text_encoder", lora.clip)):
        for name, matrix in layers.items():
            tensors[f"{network}.{name}.lora_A.weight"] = matrix.down
            tensors[f"{network}.{name}.lora_B.weight"] = matrix.up
            if matrix.bias is not None:
                tensors[f"{network}.{name}.lora_B.bias"] = matrix.bias / matrix.scale
            tensors[f"{network}.{name}.alpha"] = torch.tensor(matrix.scale * matrix.rank)
    return tensors


def dequantize(transformer: nn.Module) -> None:
    """Replaces quanto's linear layers, which peft does not support, with torch layers of the same quantized values."""
    for module in transformer.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                plain = nn.Linear(child.in_features, child.out_features, child.bias is not None, dtype=torch.bfloat16)
                weight: Any = child.weight
                plain.weight = nn.Parameter(weight.dequantize(), requires_grad=False)
                plain.bias = child.bias
                setattr(module, name, plain)


def add_peft_layers(checkpoint: Checkpoint, loras: Mapping[str, LoraWeights], scales: Mapping[str, float]) -> None:
    """Adds LoRAs to the networks of a checkpoint through diffusers and peft."""
    pipeline = diffusers_reference.make_pipeline(checkpoint)
    for key in scales:
        pipeline.load_lora_weights(_diffusers_state_dict(loras[key]), adapter_name=key)
    pipeline.set_adapters(list(scales), list(scales.values()))
