"""Images with LoRAs equal those of diffusers and peft, up to the order of rounding."""

from dataclasses import replace

import pytest
from torch import Tensor

from serve.settings import Dtype, Precision
from tests.unit.engine import diffusers_reference
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.loras import lora_requests, make_lora
from tests.unit.engine.peft_reference import add_peft_layers, dequantize
from tests.unit.engine.requests import Mode, make_request, run_request

TOLERANCE = {"float32": 2e-5, "bf16": 0.08, "fp8": 0.08}
"""Relative to the change that the LoRAs make. In bf16, peft rounds after each product and sum. The engine rounds once,
before the last sum."""


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
        dequantize(peft_checkpoint.transformer)
    add_peft_layers(peft_checkpoint, loras, scales)
    plain = make_request(mode, steps=2, strength=None if mode == "text_to_image" else 1.0)
    adapted = replace(plain, loras=lora_requests(**scales), lora_weights=loras)
    reference = diffusers_reference.latents(peft_checkpoint, plain)
    change = _max_difference(reference, run_request(checkpoint, plain).latents[0])
    assert change > 0.5
    assert _max_difference(run_request(checkpoint, adapted).latents[0], reference) <= TOLERANCE[precision] * change
