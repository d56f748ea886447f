"""Sigma schedules, shifted by image size.

diffusers' scheduler computes the sigmas but also keeps the current step, so one instance cannot serve images at
different steps: its sigmas are read once, and each image keeps its own step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler


@dataclass(frozen=True, slots=True)
class SigmaSchedule:
    """The steps of one image. All numbers are exact float32 values."""

    sigmas: tuple[float, ...]
    """Noise level before each step, and after the last one, which is 0."""
    timesteps: tuple[float, ...]
    """The sigma of each step in the transformer's unit, 0 to 1000."""

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def sigma_delta(self, step: int) -> float:
        """Change of sigma in step `step`, in float32; negative."""
        return float(np.float32(self.sigmas[step + 1]) - np.float32(self.sigmas[step]))


def make_sigma_schedule(config: Mapping[str, Any], tokens: int, steps: int, strength: float | None) -> SigmaSchedule:
    """The schedule of an image of `tokens` latent tokens, from the scheduler configuration of a checkpoint.

    `strength` shortens the schedule as `get_timesteps` of diffusers' `FluxImg2ImgPipeline` does, with two differences:
    for a strength below 1 at least one step is skipped, so that the input image always has an effect, and a single
    step starts at the strength itself. Strength 0 has no steps.
    """
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    scheduler.set_timesteps(sigmas=_unshifted_sigmas(steps, strength), mu=_calculate_shift(scheduler.config, tokens))
    first = _first_step(steps, strength)
    return SigmaSchedule(tuple(scheduler.sigmas[first:].tolist()), tuple(scheduler.timesteps[first:].tolist()))


def _unshifted_sigmas(steps: int, strength: float | None) -> list[float]:
    """Follows the default `sigmas` of diffusers' `FluxPipeline`."""
    if steps == 1 and strength is not None and strength > 0:
        return [strength]
    return [float(sigma) for sigma in np.linspace(1.0, 1 / steps, steps)]


def _first_step(steps: int, strength: float | None) -> int:
    """Index of the first step that runs."""
    if strength is None or strength == 1 or (steps == 1 and strength > 0):
        return 0
    return max(1, int(steps - steps * strength))


def _calculate_shift(config: Any, tokens: int) -> float | None:
    """`mu` for an image size, linear in its tokens: diffusers' `calculate_shift`. None if the shift is constant."""
    if not config.use_dynamic_shifting:
        return None
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return float(tokens * slope + (config.base_shift - slope * config.base_image_seq_len))
