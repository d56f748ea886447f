"""Makes the checkpoints for the benchmarks: the embedded model, or a transformer of FLUX.1's size with random weights.

The large transformer needs no download. A step takes as long with random weights as with trained ones.
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
"""Arguments of diffusers' `FluxTransformer2DModel` for FLUX.1 [dev]. The defaults of all others are those of FLUX.1."""
_FLUX1_TEXT_TOKENS = 512


def make_checkpoint(geometry: GeometryName, precision: Precision, device: Device) -> Checkpoint:
    """A checkpoint on `device`.

    `flux1-dev` needs 24 GB of device memory in bf16. In fp8 it needs as much while it is made, and 12 GB afterwards.
    """
    pool = PoolSettings(model="dev", device=device, precision=precision)
    settings = Settings()
    if geometry == "embedded":
        return load_checkpoint(settings.models["dev"], pool, hf_token=None)
    source = test_checkpoint.ensure("dev", cache_folder(settings), Geometry(max_sequence_length=_FLUX1_TEXT_TOKENS))
    checkpoint = load_checkpoint(
        ModelSettings(variant="dev", source=str(source), max_sequence_length=_FLUX1_TEXT_TOKENS), pool, hf_token=None
    )
    return replace(checkpoint, transformer=random_transformer(FLUX1_DEV, precision, checkpoint.device))


def random_transformer(config: dict[str, Any], precision: Precision, device: torch.device) -> FluxTransformer2DModel:
    """A transformer with seeded random weights, created on `device`.

    The weights of a layer have a standard deviation of 1 / sqrt(inputs), so its outputs are about as large as its
    inputs.
    """
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


def flops_per_pass(transformer: FluxTransformer2DModel, image_tokens: int, max_sequence_length: int) -> int:
    """Floating-point operations of one forward pass for one image; a multiply-add counts as two. Runs on `meta`."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        config = transformer.config
        FluxTransformer2DModel.from_config(config)(
            hidden_states=torch.empty(1, image_tokens, config.in_channels),
            encoder_hidden_states=torch.empty(1, max_sequence_length, config.joint_attention_dim),
            pooled_projections=torch.empty(1, config.pooled_projection_dim),
            timestep=torch.empty(1),
            guidance=torch.empty(1) if config.guidance_embeds else None,
            img_ids=torch.empty(image_tokens, 3),
            txt_ids=torch.empty(max_sequence_length, 3),
        )
    return int(counter.get_total_flops())
