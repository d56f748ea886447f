"""The FLOP count and the random transformers of the engine benchmark."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from optimum.quanto import QLinear

from benchmarks.geometry import FLUX1_DEV, flops_per_pass, random_transformer

CPU = torch.device("cpu")
SMALL = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "axes_dims_rope": (8, 28, 28),
    "joint_attention_dim": 48,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
}


def test_flop_count_equals_closed_form() -> None:
    """Two operations per weight and token, and four per channel and pair of tokens in attention."""
    image, text, width = 24, 10, 128
    modulation, vector_embedders = (6 + 6 + 3 + 2) * width**2, 2 * (256 + width) * width + (32 + width) * width
    blocks = 2 * 12 * width**2 * (image + text)
    per_token = 2 * 64 * width * image + 48 * width * text
    attention = 2 * 4 * (image + text) ** 2 * width
    transformer = random_transformer(SMALL, "bf16", CPU)
    expected = 2 * (modulation + vector_embedders + blocks + per_token) + attention
    assert flops_per_pass(transformer, image, text) == expected


def test_flux1_dev_geometry_has_the_parameter_count_of_flux1() -> None:
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**FLUX1_DEV)
    assert sum(weight.numel() for weight in transformer.parameters()) == 11_901_408_320


def test_random_weights_are_seeded_and_scaled_by_their_input_width() -> None:
    first, second = (random_transformer(SMALL, "bf16", CPU).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    weight = first["transformer_blocks.0.ff.net.0.proj.weight"]
    assert weight.dtype == torch.bfloat16
    assert weight.float().std() == pytest.approx(128**-0.5, rel=0.02)


def test_random_weights_are_quantized_in_fp8_and_stay_float32_in_float32() -> None:
    quantized = random_transformer(SMALL, "fp8", CPU)
    assert all(isinstance(layer, QLinear) for layer in quantized.modules() if isinstance(layer, torch.nn.Linear))
    assert random_transformer(SMALL, "float32", CPU).dtype == torch.float32
