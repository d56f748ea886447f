"""The layers of a `ModelGeometry` equal the linear layers of the diffusers and transformers classes."""

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel

from serve.lora.model_geometry import ModelGeometry
from tests.unit.lora.geometries import FLUX, FLUX_CLIP, FLUX_TRANSFORMER

SMALL_TRANSFORMER = {
    **FLUX_TRANSFORMER,
    "num_layers": 1,
    "num_single_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "axes_dims_rope": (4, 2, 2),
    "in_channels": 12,
    "out_channels": 20,
    "patch_size": 2,
    "joint_attention_dim": 6,
    "pooled_projection_dim": 10,
}
SMALL_CLIP = {"num_hidden_layers": 3, "hidden_size": 12, "intermediate_size": 20}


def linear_layers(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    return {
        name: (layer.out_features, layer.in_features)
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }


@pytest.mark.parametrize(
    "config", [FLUX_TRANSFORMER, SMALL_TRANSFORMER, {**SMALL_TRANSFORMER, "guidance_embeds": False}]
)
def test_transformer_layers_equal_those_of_diffusers(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = FluxTransformer2DModel(**config)
    assert ModelGeometry.from_configs(dict(model.config), FLUX_CLIP).transformer_layers() == linear_layers(model)


@pytest.mark.parametrize("config", [FLUX_CLIP, SMALL_CLIP])
def test_clip_layers_equal_those_of_transformers(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**config, num_attention_heads=4))
    assert ModelGeometry.from_configs(FLUX_TRANSFORMER, model.config.to_dict()).clip_layers() == linear_layers(model)


def test_model_without_guidance_lacks_the_guidance_embedder_only() -> None:
    schnell = ModelGeometry.from_configs({**FLUX_TRANSFORMER, "guidance_embeds": False}, FLUX_CLIP)
    assert set(FLUX.transformer_layers()) - set(schnell.transformer_layers()) == {
        "time_text_embed.guidance_embedder.linear_1",
        "time_text_embed.guidance_embedder.linear_2",
    }
