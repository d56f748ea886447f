"""The table of layers is that of the very classes that serve."""

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel

from serve.lora.model_geometry import ModelGeometry
from tests.unit.lora.geometries import TRUE, TRUE_CLIP, TRUE_TRANSFORMER

SMALL = {
    **TRUE_TRANSFORMER,
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


def linears(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    return {
        name: (layer.out_features, layer.in_features)
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }


@pytest.mark.parametrize("config", [TRUE_TRANSFORMER, SMALL, {**SMALL, "guidance_embeds": False}])
def test_the_transformer_has_the_layers_of_the_table_and_no_others(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = FluxTransformer2DModel(**config)
    assert ModelGeometry.from_configs(dict(model.config), TRUE_CLIP).transformer_layers() == linears(model)


@pytest.mark.parametrize("config", [TRUE_CLIP, {"num_hidden_layers": 3, "hidden_size": 12, "intermediate_size": 20}])
def test_clip_has_the_layers_of_the_table_and_no_others(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**config, num_attention_heads=4))
    assert ModelGeometry.from_configs(TRUE_TRANSFORMER, model.config.to_dict()).clip_layers() == linears(model)


def test_guided_and_unguided_models_differ_and_the_rest_is_equal() -> None:
    schnell = ModelGeometry.from_configs({**TRUE_TRANSFORMER, "guidance_embeds": False}, TRUE_CLIP)
    assert set(TRUE.transformer_layers()) - set(schnell.transformer_layers()) == {
        "time_text_embed.guidance_embedder.linear_1",
        "time_text_embed.guidance_embedder.linear_2",
    }
