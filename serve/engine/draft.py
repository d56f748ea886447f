"""An image under way: where it stands in its schedule, and all that its next step needs. Knows no batch, no thread."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from serve.engine.adapters import NO_LORAS, Mix, Scales
from serve.engine.job import Job
from serve.engine.latents import Grid, LatentSpace
from serve.engine.schedule import Schedule, make_schedule
from serve.engine.text import Text


@dataclass(frozen=True, slots=True)
class Original:
    """What an inpainting returns to wherever its mask keeps the picture. Packed, [1, tokens, channels] each."""

    latents: Tensor
    noise: Tensor
    repaint: Tensor
    """1 where latents are drawn anew, 0 where they are kept."""


class Group(NamedTuple):
    """What images must agree in to share a pass."""

    grid: Grid
    text_tokens: int
    loras: Scales = ()
    """Nothing, unless LoRAs are kept apart."""


@dataclass(slots=True, eq=False)
class Draft:
    """One image of a job between its noise and its pixels."""

    image: int
    """Its index among the images of its job."""
    text: Text
    guidance: float
    """Not read by transformers without a guidance embedding."""
    schedule: Schedule
    grid: Grid
    positions: Tensor
    """[tokens, 3]"""
    latents: Tensor
    """[1, tokens, channels], after `done` steps."""
    mix: Mix = NO_LORAS
    original: Original | None = None
    done: int = 0

    @property
    def finished(self) -> bool:
        return self.done == self.schedule.steps

    @property
    def group(self) -> Group:
        return Group(self.grid, self.text.embeddings.shape[1])


class Drafting:
    """Begins the images of jobs in one latent space."""

    def __init__(self, space: LatentSpace, scheduler_config: Mapping[str, Any]) -> None:
        self._space = space
        self._scheduler_config = scheduler_config

    def begin(self, job: Job, text: Text, mix: Mix, posterior: DiagonalGaussianDistribution | None) -> list[Draft]:
        """All images of the job, before their first step. `posterior` is that of its picture, if it has one."""
        assert job.plan.size is not None
        plan, grid = job.plan, self._space.grid(job.plan.size)
        schedule = make_schedule(self._scheduler_config, grid.tokens, plan.steps, plan.strength)
        positions = self._space.positions(grid)
        repaint = None if job.mask is None else self._space.repaint(job.mask)
        drafts = []
        for image, seed in enumerate(plan.seeds):
            generator = torch.Generator("cpu").manual_seed(seed)
            # The picture's sample is drawn before the noise: diffusers does, and the generator gives each number once.
            sample = None if posterior is None else self._space.sample(posterior, generator)
            noise = self._space.noise(generator, grid)
            latents = noise if sample is None else add_noise(sample, noise, schedule.sigmas[0])
            draft = Draft(image, text, plan.guidance or 0.0, schedule, grid, positions, latents, mix)
            if sample is not None and repaint is not None:
                draft.original = Original(sample, noise, repaint)
            drafts.append(draft)
        return drafts


def add_noise(latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """`latents` with the share `sigma` of noise, in their own dtype, which rounds `sigma` too."""
    share = torch.full((1, 1, 1), sigma, device=latents.device, dtype=torch.float32).to(latents.dtype)
    return share * noise + (1.0 - share) * latents
