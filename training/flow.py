"""Rectified flow on packed latents, as FLUX has it: x_t = (1 - t) x_0 + t noise, the model gives noise - x_0.

Times here are 1 (noise) to 0 (picture). Knows nothing of training loops or files.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from diffusers import FluxTransformer2DModel

from training.precision import autocast

Text = tuple[torch.Tensor, torch.Tensor]
"""T5's tokens (batch, max_sequence_length, width) and CLIP's pooled vectors (batch, width)."""


class Place(NamedTuple):
    """Rows and columns of a paper's tokens, and which of them are there."""

    rows: int
    columns: int
    kept: torch.Tensor | None = None
    """Numbers of the tokens that are there, in their order; all, row by row, if None."""
    counts: torch.Tensor | None = None
    """How many tokens each of these stands for, so that a few are attended to as all would be; one each if None."""

    @property
    def tokens(self) -> int:
        """Of the whole paper."""
        return self.rows * self.columns

    def weight(self, words: int) -> torch.Tensor | None:
        """What attention adds to the keys of so many tokens of text and of these: (1, 1, 1, keys)."""
        if self.counts is None:
            return None
        return torch.cat([torch.zeros(words), self.counts.log()])[None, None, None]


BEGINNING = 0.15
"""How far down from 1 the times reach of which a third of training is."""
BASE_TOKENS, MAX_TOKENS, BASE_SHIFT, MAX_SHIFT = 64, 1024, 0.5, 1.15


def shift(tokens: int) -> float:
    """exp(mu) of FLUX's schedule for pictures of this many tokens: larger ones stay longer in the noise."""
    slope = (MAX_SHIFT - BASE_SHIFT) / (MAX_TOKENS - BASE_TOKENS)
    return math.exp(BASE_SHIFT + slope * (tokens - BASE_TOKENS))


def shifted(times: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
    return factor * times / (1 + (factor - 1) * times)


def schedule(steps: int, factor: float) -> torch.Tensor:
    """`steps` + 1 times from 1 to 0, as diffusers' FluxPipeline spaces them."""
    times = torch.linspace(1.0, 1 / steps, steps)
    return torch.cat([shifted(times, factor), torch.zeros(1)])


def training_times(count: int, factor: float) -> torch.Tensor:
    """A third from the beginning, where only the prompt says what will be there; else mostly from the middle."""
    middle, anywhere = torch.sigmoid(torch.randn(count)), torch.rand(count)
    later = shifted(torch.where(torch.rand(count) < 0.2, anywhere, middle), factor)
    return torch.where(torch.rand(count) < 1 / 3, 1 - BEGINNING * torch.rand(count), later)


def position_ids(place: Place) -> torch.Tensor:
    """(tokens, 3): nothing, row, column of every token that is there."""
    ids = torch.zeros(place.rows, place.columns, 3)
    ids[..., 1] = torch.arange(place.rows)[:, None]
    ids[..., 2] = torch.arange(place.columns)[None]
    ids = ids.reshape(-1, 3)
    return ids if place.kept is None else ids[place.kept]


def noised(clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    weight = times[:, None, None]
    return (1 - weight) * clean + weight * noise


def velocity(
    model: FluxTransformer2DModel,
    latents: torch.Tensor,
    times: torch.Tensor,
    text: Text,
    place: Place,
    guidance: torch.Tensor | None = None,
) -> torch.Tensor:
    """(batch, tokens, 64) in float32; `guidance`: (batch,) if the model has it."""
    weight = place.weight(text[0].shape[1])
    with autocast(latents.device.type):
        given: torch.Tensor = model(
            hidden_states=latents,
            encoder_hidden_states=text[0],
            pooled_projections=text[1],
            timestep=times,
            img_ids=position_ids(place).to(latents.device),
            txt_ids=torch.zeros(text[0].shape[1], 3, device=latents.device),
            guidance=guidance,
            joint_attention_kwargs=None if weight is None else {"attention_mask": weight.to(latents.device)},
            return_dict=False,
        )[0]
    return given.float()


def flow_loss(
    model: FluxTransformer2DModel,
    clean: torch.Tensor,
    text: Text,
    place: Place,
    guidance: torch.Tensor | None = None,
) -> torch.Tensor:
    """How far the model's velocity is from that between pictures and noise, at a time drawn for each picture."""
    times = training_times(len(clean), shift(place.tokens)).to(clean.device)
    noise = torch.randn_like(clean)
    guess = velocity(model, noised(clean, noise, times), times, text, place, guidance)
    return (guess - (noise - clean)).square().mean()


def guided(
    model: FluxTransformer2DModel,
    latents: torch.Tensor,
    times: torch.Tensor,
    text: Text,
    empty: Text,
    place: Place,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Classifier-free guidance: two passes of a model without a guidance embedding. `scale` is (batch,)."""
    both = velocity(
        model,
        torch.cat([latents, latents]),
        torch.cat([times, times]),
        (torch.cat([text[0], empty[0]]), torch.cat([text[1], empty[1]])),
        place,
    )
    with_text, without = both.chunk(2)
    return without + scale[:, None, None] * (with_text - without)


@torch.no_grad()
def sample(
    model: FluxTransformer2DModel,
    text: Text,
    empty: Text,
    grid: tuple[int, int],
    *,
    steps: int,
    guidance: float,
    seed: int,
    shift_factor: float | None = None,
) -> torch.Tensor:
    """Latents (batch, tokens, 64) from noise, by Euler steps.

    A model with a guidance embedding is told `guidance`; one without gets it from outside, or none if it is 1.
    """
    count = text[0].shape[0]
    place = Place(*grid)
    latents = torch.randn(count, place.tokens, 64, generator=torch.Generator().manual_seed(seed)).to(text[0])
    scale = torch.full((count,), guidance, device=latents.device)
    times = schedule(steps, shift(place.tokens) if shift_factor is None else shift_factor)
    for now, then in pairwise(times):
        at = now.to(latents).expand(count)
        if model.config.guidance_embeds:
            step = velocity(model, latents, at, text, place, scale)
        elif guidance == 1:
            step = velocity(model, latents, at, text, place)
        else:
            step = guided(model, latents, at, text, empty, place, scale)
        latents = latents + (then - now) * step
    return latents
