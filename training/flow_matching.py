"""Rectified flow on packed latents, as in FLUX: x_t = (1 - t) x_0 + t noise; the model predicts noise - x_0.

Times run from 1 (noise) to 0 (image).
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from diffusers import FluxTransformer2DModel

from training.precision import autocast

Text = tuple[torch.Tensor, torch.Tensor]
"""T5's prompt embeds `[batch, max_sequence_length, width]` and CLIP's pooled prompt embeds `[batch, width]`."""


class TokenLayout(NamedTuple):
    """Rows and columns of a canvas in tokens, and the tokens that are present."""

    rows: int
    columns: int
    kept: torch.Tensor | None = None
    """Row-major indices of the present tokens, in their order; None means all."""
    multiplicity: torch.Tensor | None = None
    """Number of canvas tokens that each present token stands for, as a weight in attention; None means one each."""

    @property
    def tokens(self) -> int:
        """Number of tokens of the full canvas."""
        return self.rows * self.columns

    def attention_bias(self, text_tokens: int) -> torch.Tensor | None:
        """Returns the attention mask that is added to the keys' scores, `[1, 1, 1, text_tokens + tokens]`."""
        if self.multiplicity is None:
            return None
        return torch.cat([torch.zeros(text_tokens), self.multiplicity.log()])[None, None, None]


HIGH_NOISE_SPAN = 0.15
"""A third of the training times are within this distance of 1."""
BASE_TOKENS, MAX_TOKENS, BASE_SHIFT, MAX_SHIFT = 64, 1024, 0.5, 1.15


def shift(tokens: int) -> float:
    """Returns exp(mu) for images of this many tokens. Follows diffusers' `calculate_shift`."""
    slope = (MAX_SHIFT - BASE_SHIFT) / (MAX_TOKENS - BASE_TOKENS)
    return math.exp(BASE_SHIFT + slope * (tokens - BASE_TOKENS))


def apply_shift(times: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
    return factor * times / (1 + (factor - 1) * times)


def schedule(steps: int, factor: float) -> torch.Tensor:
    """Returns `steps` + 1 times from 1 to 0, spaced as in diffusers' FluxPipeline."""
    times = torch.linspace(1.0, 1 / steps, steps)
    return torch.cat([apply_shift(times, factor), torch.zeros(1)])


def sample_times(count: int, factor: float) -> torch.Tensor:
    """Samples times: a third near 1, where only the prompt determines the image, and most others from the middle."""
    middle, uniform = torch.sigmoid(torch.randn(count)), torch.rand(count)
    shifted = apply_shift(torch.where(torch.rand(count) < 0.2, uniform, middle), factor)
    return torch.where(torch.rand(count) < 1 / 3, 1 - HIGH_NOISE_SPAN * torch.rand(count), shifted)


def position_ids(layout: TokenLayout) -> torch.Tensor:
    """Returns `[tokens, 3]`: 0, row and column of each present token."""
    ids = torch.zeros(layout.rows, layout.columns, 3)
    ids[..., 1] = torch.arange(layout.rows)[:, None]
    ids[..., 2] = torch.arange(layout.columns)[None]
    ids = ids.reshape(-1, 3)
    return ids if layout.kept is None else ids[layout.kept]


def add_noise(clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    weight = times[:, None, None]
    return (1 - weight) * clean + weight * noise


def velocity(
    model: FluxTransformer2DModel,
    latents: torch.Tensor,
    times: torch.Tensor,
    text: Text,
    layout: TokenLayout,
    guidance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the model's velocity, `[batch, tokens, 64]` in float32. `guidance` is `[batch]`, or None."""
    attention_bias = layout.attention_bias(text[0].shape[1])
    with autocast(latents.device.type):
        prediction: torch.Tensor = model(
            hidden_states=latents,
            encoder_hidden_states=text[0],
            pooled_projections=text[1],
            timestep=times,
            img_ids=position_ids(layout).to(latents.device),
            txt_ids=torch.zeros(text[0].shape[1], 3, device=latents.device),
            guidance=guidance,
            joint_attention_kwargs=(
                None if attention_bias is None else {"attention_mask": attention_bias.to(latents.device)}
            ),
            return_dict=False,
        )[0]
    return prediction.float()


def flow_loss(
    model: FluxTransformer2DModel,
    clean: torch.Tensor,
    text: Text,
    layout: TokenLayout,
    guidance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the mean squared error of the velocity at a random time per image."""
    times = sample_times(len(clean), shift(layout.tokens)).to(clean.device)
    noise = torch.randn_like(clean)
    prediction = velocity(model, add_noise(clean, noise, times), times, text, layout, guidance)
    return (prediction - (noise - clean)).square().mean()


def guided_velocity(
    model: FluxTransformer2DModel,
    latents: torch.Tensor,
    times: torch.Tensor,
    text: Text,
    empty_text: Text,
    layout: TokenLayout,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Classifier-free guidance: two passes of a model without a guidance embedding. `scale` is `[batch]`."""
    velocities = velocity(
        model,
        torch.cat([latents, latents]),
        torch.cat([times, times]),
        (torch.cat([text[0], empty_text[0]]), torch.cat([text[1], empty_text[1]])),
        layout,
    )
    conditional, unconditional = velocities.chunk(2)
    return unconditional + scale[:, None, None] * (conditional - unconditional)


@torch.no_grad()
def sample(
    model: FluxTransformer2DModel,
    text: Text,
    empty_text: Text,
    grid: tuple[int, int],
    *,
    steps: int,
    guidance: float,
    seed: int,
    shift_factor: float | None = None,
) -> torch.Tensor:
    """Returns latents `[batch, tokens, 64]`, sampled from noise by Euler steps.

    A model with a guidance embedding gets `guidance` as input; others get classifier-free guidance unless it is 1.
    """
    count = text[0].shape[0]
    layout = TokenLayout(*grid)
    latents = torch.randn(count, layout.tokens, 64, generator=torch.Generator().manual_seed(seed)).to(text[0])
    scale = torch.full((count,), guidance, device=latents.device)
    times = schedule(steps, shift(layout.tokens) if shift_factor is None else shift_factor)
    for time, next_time in pairwise(times):
        batch_time = time.to(latents).expand(count)
        if model.config.guidance_embeds:
            step = velocity(model, latents, batch_time, text, layout, scale)
        elif guidance == 1:
            step = velocity(model, latents, batch_time, text, layout)
        else:
            step = guided_velocity(model, latents, batch_time, text, empty_text, layout, scale)
        latents = latents + (next_time - time) * step
    return latents
