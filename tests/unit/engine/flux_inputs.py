"""Inputs of FLUX's transformer, made without a prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from serve.engine.checkpoint import Checkpoint
from serve.engine.flux_transformer import Conditioning, FluxTransformer
from serve.engine.latents import LatentGrid, LatentSpace
from serve.engine.lora_layers import LoraSlots, SlotSelection
from serve.engine.sigmas import SigmaSchedule, make_sigma_schedule


class Prompt(NamedTuple):
    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor


def make_prompt(checkpoint: Checkpoint, seed: int, text_tokens: int = 8) -> Prompt:
    generator = torch.Generator().manual_seed(seed)
    config, dtype = checkpoint.transformer.config, checkpoint.transformer.dtype
    return Prompt(
        torch.randn(1, text_tokens, config.joint_attention_dim, generator=generator).to(dtype),
        torch.randn(1, config.pooled_projection_dim, generator=generator).to(dtype),
    )


def make_latents(checkpoint: Checkpoint, seed: int, tokens: int) -> Tensor:
    latents = torch.randn(1, tokens, 64, generator=torch.Generator().manual_seed(seed))
    return latents.to(checkpoint.transformer.dtype)


def schedule(checkpoint: Checkpoint, grid: LatentGrid, steps: int = 3, strength: float | None = None) -> SigmaSchedule:
    return make_sigma_schedule(checkpoint.noise_scheduler_config, grid.tokens, steps, strength)


def condition(
    checkpoint: Checkpoint,
    transformer: FluxTransformer,
    seed: int,
    grid: LatentGrid,
    text_tokens: int = 8,
    loras: SlotSelection | None = None,
    strength: float | None = None,
) -> Conditioning:
    """A conditioning of three steps."""
    return transformer.condition(
        *make_prompt(checkpoint, seed, text_tokens),
        LatentSpace(checkpoint).img_ids(grid),
        schedule(checkpoint, grid, strength=strength),
        3.5 if checkpoint.guidance_embeds else None,
        loras,
    )


def velocity(
    checkpoint: Checkpoint,
    transformer: FluxTransformer,
    slots: LoraSlots,
    grid: LatentGrid,
    selections: Sequence[SlotSelection | None],
    text_tokens: int = 8,
    step: int = 1,
) -> Tensor:
    """The velocity of a batch with an image for each of `selections`. Image i has seed i."""
    conditions = [
        condition(checkpoint, transformer, seed, grid, text_tokens, loras) for seed, loras in enumerate(selections)
    ]
    loras = slots.batch(selections)
    return transformer.predict_velocity(
        torch.cat([make_latents(checkpoint, seed, grid.tokens) for seed in range(len(selections))]),
        torch.cat([each.text for each in conditions]),
        conditions[0].rotary,
        transformer.modulation([(each, step) for each in conditions], loras),
        loras,
    ).clone()
