"""The [dev] and [schnell] students: initial weights, conditioning and the base's target velocities."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from training.flow_matching import Text, TokenLayout, guided_velocity, sample_times, schedule, shift
from training.import_weights import apply_delta, delta_file
from training.student_rollout import Interval, even_timesteps, varied_timesteps
from training.transformer import build

GUIDANCE_FROM, GUIDANCE_TO = 1.0, 7.0
DEV_STEPS = 10
"""Steps of a rollout of [dev]. Inference takes 28."""
SCHNELL_STEPS = 4
SCHNELL_GUIDANCE = 3.0
"""Guidance scale distilled into [schnell]."""
SUBSTEPS = 2
"""Steps of the base that one step of [schnell] replaces; each takes two passes of the base."""


def dev_from(base: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """Returns the base with a guidance embedding of zero."""
    model = build(guided=True)
    model.load_state_dict(base.state_dict(), strict=False)
    torch.nn.init.zeros_(model.time_text_embed.guidance_embedder.linear_2.weight)
    torch.nn.init.zeros_(model.time_text_embed.guidance_embedder.linear_2.bias)
    return model


def schnell_from(base: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """Returns a copy of the base."""
    model = build()
    model.load_state_dict(base.state_dict())
    return model


def make_student(kind: str, base: FluxTransformer2DModel, runs: Path) -> FluxTransformer2DModel:
    """Returns a student of this base, with an earlier student's weight delta if one was imported."""
    student = dev_from(base) if kind == "dev" else schnell_from(base)
    if delta_file(runs, kind).exists():
        apply_delta(base, student, torch.load(delta_file(runs, kind), weights_only=True))
    return student


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Prompt embeds of a batch, those of empty prompts, token layout and guidance scales."""

    text: Text
    empty_text: Text
    layout: TokenLayout
    guidance: torch.Tensor
    """`[batch]`."""


@dataclass(frozen=True, slots=True)
class StudentConfig:
    """How a student is trained."""

    sample_guidance: Callable[[int], torch.Tensor]
    """Samples guidance scales for this many images."""
    timesteps: Callable[[int, int], torch.Tensor]
    """Returns a rollout's times for this many images of this many tokens."""
    single_interval: Callable[[int, int], torch.Tensor]
    """Samples a single interval, `[images, 2]`, for this many images of this many tokens."""
    target: Callable[[FluxTransformer2DModel, Interval, Conditioning], torch.Tensor]
    """Returns the velocity to learn, from the base."""


def sample_dev_guidance(count: int) -> torch.Tensor:
    """Samples from the full range; half of the values are below 3.2, as is usual in requests."""
    return GUIDANCE_FROM + (GUIDANCE_TO - GUIDANCE_FROM) * torch.rand(count) ** 1.5


def dev_target(base: FluxTransformer2DModel, interval: Interval, conditioning: Conditioning) -> torch.Tensor:
    """Returns the guided velocity of the base, from two passes."""
    return guided_velocity(
        base,
        interval.latents,
        interval.begin,
        conditioning.text,
        conditioning.empty_text,
        conditioning.layout,
        conditioning.guidance,
    )


def schnell_target(base: FluxTransformer2DModel, interval: Interval, conditioning: Conditioning) -> torch.Tensor:
    """Returns the mean velocity of the guided base over the interval, from `SUBSTEPS` steps."""
    latents, begin, duration = interval.latents, interval.begin, interval.end - interval.begin
    for substep in range(SUBSTEPS):
        now = begin + duration * substep / SUBSTEPS
        step = guided_velocity(
            base, latents, now, conditioning.text, conditioning.empty_text, conditioning.layout, conditioning.guidance
        )
        latents = latents + (duration / SUBSTEPS)[:, None, None] * step
    return (latents - interval.latents) / duration[:, None, None]


def _dev_interval(count: int, tokens: int) -> torch.Tensor:
    times = sample_times(count, shift(tokens))
    return torch.stack([times, torch.zeros_like(times)], 1)


def _schnell_interval(count: int, _: int) -> torch.Tensor:
    timesteps, interval = schedule(SCHNELL_STEPS, 1.0), torch.randint(SCHNELL_STEPS, (count,))
    return torch.stack([timesteps[interval], timesteps[interval + 1]], 1)


STUDENT_CONFIGS = {
    "dev": StudentConfig(
        sample_dev_guidance,
        lambda count, tokens: varied_timesteps(count, DEV_STEPS, shift(tokens)),
        _dev_interval,
        dev_target,
    ),
    "schnell": StudentConfig(
        lambda count: torch.full((count,), SCHNELL_GUIDANCE),
        lambda count, _: even_timesteps(count, SCHNELL_STEPS),
        _schnell_interval,
        schnell_target,
    ),
}
