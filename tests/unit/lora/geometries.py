"""Models by their configuration: the true FLUX, and one so small that every weight of it can be looked at."""

from dataclasses import asdict
from typing import Any

from serve.lora.model_geometry import ModelGeometry

TRUE_TRANSFORMER: dict[str, Any] = {
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 64,
    "out_channels": None,
    "patch_size": 1,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
TRUE_CLIP: dict[str, Any] = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072}

TRUE = ModelGeometry.from_configs(TRUE_TRANSFORMER, TRUE_CLIP)
TINY = ModelGeometry(
    double_blocks=2,
    single_blocks=2,
    width=16,
    in_channels=8,
    out_channels=8,
    text_width=12,
    pooled_width=10,
    guidance_embeds=True,
    clip_blocks=2,
    clip_width=10,
    clip_mlp_width=24,
)


def changed(geometry: ModelGeometry, **fields: Any) -> ModelGeometry:
    return ModelGeometry(**{**asdict(geometry), **fields})
