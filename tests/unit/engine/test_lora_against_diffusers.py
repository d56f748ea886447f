"""LoRAs act as diffusers and peft apply them, but for the order in which peft rounds."""

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
from tests.unit.engine.requests import make_request, run_request

TOLERANCE = {"float32": 2e-5, "bf16": 0.08, "fp8": 0.08}
"""As a share of what the LoRAs change. In bf16 peft rounds after each product and sum, we before the last sum only."""


def _tensors(lora: LoraWeights) -> dict[str, Tensor]:
    """In diffusers' format."""
    tensors: dict[str, Tensor] = {}
    for network, layers in (("transformer", lora.transformer), ("text_encoder", lora.clip)):
        for name, matrix in layers.items():
            tensors[f"{network}.{name}.lora_A.weight"] = matrix.down
            tensors[f"{network}.{name}.lora_B.weight"] = matrix.up
            tensors[f"{network}.{name}.alpha"] = torch.tensor(matrix.scale * matrix.rank)
    return tensors


def _without_float8(transformer: nn.Module) -> None:
    """peft does not know quanto's linears: the same weights in linears that it knows."""
    for module in transformer.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                plain = nn.Linear(child.in_features, child.out_features, child.bias is not None, dtype=torch.bfloat16)
                weight: Any = child.weight
                plain.weight = nn.Parameter(weight.dequantize(), requires_grad=False)
                plain.bias = child.bias
                setattr(module, name, plain)


def _with_peft(checkpoint: Checkpoint, loras: Mapping[str, LoraWeights], scales: Mapping[str, float]) -> None:
    """Puts peft's layers into the networks of a checkpoint."""
    pipeline = diffusers_reference.make_pipeline(checkpoint)
    for key in scales:
        pipeline.load_lora_weights(_tensors(loras[key]), adapter_name=key)
    pipeline.set_adapters(list(scales), list(scales.values()))


def _furthest(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


WHOLE, TWO, DAMPED, OUTSIDE = {"whole": 1.0}, {"attention": 0.6, "single": -1.5}, {"damped": 0.8}, {"outside": 2.0}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize(
    ("precision", "mode", "scales"),
    [
        pytest.param("float32", "text_to_image", WHOLE, id="all layers, and CLIP"),
        pytest.param("float32", "text_to_image", TWO, id="two of other layers, ranks and signs"),
        pytest.param("float32", "image_to_image", DAMPED, id="an alpha of its own"),
        pytest.param("float32", "inpainting", OUTSIDE | WHOLE, id="layers outside of the blocks"),
        pytest.param("bf16", "text_to_image", WHOLE, id="bf16"),
        pytest.param("bf16", "text_to_image", TWO, id="bf16, two"),
        pytest.param("fp8", "text_to_image", WHOLE, id="fp8"),
        pytest.param("fp8", "text_to_image", TWO, id="fp8, two"),
    ],
)
def test_pictures_are_those_of_peft(
    checkpoints: Checkpoints, precision: Precision, mode: Any, scales: dict[str, float]
) -> None:
    vae: Dtype = "float32" if precision == "float32" else "bfloat16"
    checkpoint, theirs = checkpoints.get("dev", precision, vae), checkpoints.load("dev", precision, vae)
    loras = {
        "whole": make_lora(checkpoint, 1, rank=4, clip=True),
        "attention": make_lora(checkpoint, 2, rank=8, layers=r"attn\.(to_q|to_v|to_out|add_k_proj)"),
        "single": make_lora(checkpoint, 3, rank=19, layers=r"^single_.*(norm\.linear|proj_mlp)"),
        "damped": make_lora(checkpoint, 4, rank=3, clip=True, scale=0.5),
        "outside": make_lora(checkpoint, 5, rank=2, layers="embed|^norm_out"),
    }
    if precision == "fp8":
        _without_float8(theirs.transformer)
    _with_peft(theirs, loras, scales)
    plain = make_request(mode, steps=2, strength=None if mode == "text_to_image" else 1.0)
    adapted = replace(plain, loras=lora_requests(**scales), lora_weights=loras)
    reference = diffusers_reference.latents(theirs, plain)
    changed = _furthest(reference, run_request(checkpoint, plain).latents[0])
    assert changed > 0.5
    assert _furthest(run_request(checkpoint, adapted).latents[0], reference) <= TOLERANCE[precision] * changed
