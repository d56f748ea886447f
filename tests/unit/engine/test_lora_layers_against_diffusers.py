"""Images with LoRAs equal those of diffusers and peft, up to the order of rounding."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from serve.engine.checkpoint import Checkpoint
from serve.lora.weights import LoraWeights
from serve.settings import Dtype, Precision
from tests.unit.engine import diffusers_reference
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.loras import lora_requests, make_lora
from tests.unit.engine.requests import Mode, make_request, run_request

TOLERANCE = {"float32": 2e-5, "bf16": 0.08, "fp8": 0.08}
"""Relative to the change that the LoRAs make. In bf16, peft rounds after each product and sum. The engine rounds once,
before the last sum."""


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


def _dequantize(transformer: nn.Module) -> None:
    """Replaces quanto's linear layers, which peft does not support, with torch layers of the same quantized values."""
    for module in transformer.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                plain = nn.Linear(child.in_features, child.out_features, child.bias is not None, dtype=torch.bfloat16)
                weight: Any = child.weight
                plain.weight = nn.Parameter(weight.dequantize(), requires_grad=False)
                plain.bias = child.bias
                setattr(module, name, plain)


def _add_peft_layers(checkpoint: Checkpoint, loras: Mapping[str, LoraWeights], scales: Mapping[str, float]) -> None:
    """Adds LoRAs to the networks of a checkpoint through diffusers and peft."""
    pipeline = diffusers_reference.make_pipeline(checkpoint)
    for key in scales:
        pipeline.load_lora_weights(_diffusers_state_dict(loras[key]), adapter_name=key)
    pipeline.set_adapters(list(scales), list(scales.values()))


def _max_difference(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


ALL_LAYERS, TWO_LORAS = {"all_layers": 1.0}, {"attention": 0.6, "single": -1.5}
BIASES = {"biases": -0.7}
WITH_ALPHA, OUTSIDE_BLOCKS = {"with_alpha": 0.8}, {"outside_blocks": 2.0}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize(
    ("precision", "mode", "scales"),
    [
        pytest.param("float32", "text_to_image", ALL_LAYERS, id="all layers and CLIP"),
        pytest.param("float32", "text_to_image", TWO_LORAS, id="two LoRAs with different layers, ranks and signs"),
        pytest.param("float32", "image_to_image", WITH_ALPHA, id="alpha different from the rank"),
        pytest.param("float32", "inpainting", OUTSIDE_BLOCKS | ALL_LAYERS, id="layers outside the blocks"),
        pytest.param("float32", "text_to_image", BIASES, id="biases"),
        pytest.param("bf16", "text_to_image", BIASES, id="bf16, biases"),
        pytest.param("bf16", "text_to_image", ALL_LAYERS, id="bf16"),
        pytest.param("bf16", "text_to_image", TWO_LORAS, id="bf16, two LoRAs"),
        pytest.param("fp8", "text_to_image", ALL_LAYERS, id="fp8"),
        pytest.param("fp8", "text_to_image", TWO_LORAS, id="fp8, two LoRAs"),
    ],
)
def test_latents_with_loras_equal_those_of_peft(
    checkpoints: Checkpoints, precision: Precision, mode: Mode, scales: dict[str, float]
) -> None:
    vae: Dtype = "float32" if precision == "float32" else "bfloat16"
    checkpoint, peft_checkpoint = checkpoints.get("dev", precision, vae), checkpoints.load("dev", precision, vae)
    loras = {
        "all_layers": make_lora(checkpoint, 1, rank=4, clip=True),
        "attention": make_lora(checkpoint, 2, rank=8, layers=r"attn\.(to_q|to_v|to_out|add_k_proj)"),
        "single": make_lora(checkpoint, 3, rank=19, layers=r"^single_.*(norm\.linear|proj_mlp)"),
        "with_alpha": make_lora(checkpoint, 4, rank=3, clip=True, scale=0.5),
        "biases": make_lora(checkpoint, 6, rank=4, scale=0.5, biases=True),
        "outside_blocks": make_lora(checkpoint, 5, rank=2, layers="embed|^norm_out"),
    }
    if precision == "fp8":
        _dequantize(peft_checkpoint.transformer)
    _add_peft_layers(peft_checkpoint, loras, scales)
    plain = make_request(mode, steps=2, strength=None if mode == "text_to_image" else 1.0)
    adapted = replace(plain, loras=lora_requests(**scales), lora_weights=loras)
    reference = diffusers_reference.latents(peft_checkpoint, plain)
    change = _max_difference(reference, run_request(checkpoint, plain).latents[0])
    assert change > 0.5
    assert _max_difference(run_request(checkpoint, adapted).latents[0], reference) <= TOLERANCE[precision] * change
