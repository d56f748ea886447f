"""What the engine's benchmark draws with: the embedded model, or a transformer as large as FLUX.1's.

The large one needs no download: its weights are random numbers, made where they are used, and take as long as trained
ones would.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from diffusers import FluxTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from serve.engine.checkpoint import Checkpoint, load_checkpoint
from serve.engine.quantize import quantize_to_float8
from serve.settings import Device, ModelSettings, PoolSettings, Precision, Settings, cache_folder
from test_checkpoints import checkpoint as test_checkpoint
from test_checkpoints.networks import Geometry

GeometryName = Literal["embedded", "flux1-dev"]
GEOMETRIES: tuple[GeometryName, ...] = ("embedded", "flux1-dev")
FLUX1_DEV = {"guidance_embeds": True}
"""All else that diffusers' class takes is by default as in FLUX.1."""
_FLUX1_TEXT_TOKENS = 512


def make_checkpoint(geometry: GeometryName, precision: Precision, device: Device) -> Checkpoint:
    """A checkpoint to draw with. For `flux1-dev` the device needs 24 GB in bf16 and, once it is made, 12 in fp8."""
    pool = PoolSettings(model="dev", device=device, precision=precision)
    settings = Settings()
    if geometry == "embedded":
        return load_checkpoint(settings.models["dev"], pool, hf_token=None)
    source = test_checkpoint.ensure("dev", cache_folder(settings), Geometry(max_sequence_length=_FLUX1_TEXT_TOKENS))
    beside = load_checkpoint(
        ModelSettings(variant="dev", source=str(source), max_sequence_length=_FLUX1_TEXT_TOKENS), pool, hf_token=None
    )
    return replace(beside, transformer=random_transformer(FLUX1_DEV, precision, beside.device))


def random_transformer(config: dict[str, Any], precision: Precision, device: torch.device) -> FluxTransformer2DModel:
    """A transformer of seeded random weights that keep the size of what they multiply, made on `device`."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**config)
    if precision != "float32":
        transformer.bfloat16()
    transformer = transformer.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in transformer.named_parameters():
        if weight.dim() > 1:
            weight.normal_(std=weight.shape[1] ** -0.5, generator=generator)
        else:
            weight.fill_(0 if name.endswith("bias") else 1)
    if precision == "fp8":
        quantize_to_float8(transformer, device)
    return transformer


def flops_per_pass(transformer: FluxTransformer2DModel, picture_tokens: int, max_sequence_length: int) -> int:
    """Floating-point operations of one image's pass, a multiplication and an addition each counted. Runs nothing."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        config = transformer.config
        FluxTransformer2DModel.from_config(config)(
            hidden_states=torch.empty(1, picture_tokens, config.in_channels),
            encoder_hidden_states=torch.empty(1, max_sequence_length, config.joint_attention_dim),
            pooled_projections=torch.empty(1, config.pooled_projection_dim),
            timestep=torch.empty(1),
            guidance=torch.empty(1) if config.guidance_embeds else None,
            img_ids=torch.empty(picture_tokens, 3),
            txt_ids=torch.empty(max_sequence_length, 3),
        )
    return int(counter.get_total_flops())
