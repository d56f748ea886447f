"""Model geometries: that of FLUX.1 dev, and a tiny one."""

from dataclasses import asdict
from typing import Any

from serve.lora.model_geometry import ModelGeometry

FLUX_TRANSFORMER: dict[str, Any] = {
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
FLUX_CLIP: dict[str, Any] = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072}

FLUX = ModelGeometry.from_configs(FLUX_TRANSFORMER, FLUX_CLIP)
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


def with_fields(geometry: ModelGeometry, **fields: Any) -> ModelGeometry:
    return ModelGeometry(**{**asdict(geometry), **fields})
