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
    """Share of noise before each step, and after the last one, which is 0."""
    timesteps: tuple[float, ...]
    """The sigma of each step in the unit in which the transformer was trained."""

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def sigma_delta(self, step: int) -> float:
        """How far step `step` moves, as float32; negative."""
        return float(np.float32(self.sigmas[step + 1]) - np.float32(self.sigmas[step]))


def make_sigma_schedule(config: Mapping[str, Any], tokens: int, steps: int, strength: float | None) -> SigmaSchedule:
    """The schedule of a picture of `tokens` tokens, asked for `steps` steps by the scheduler config of a checkpoint.

    With a `strength` the first steps are left out, as diffusers does, but never so that a strength below 1 forgets the
    picture it starts from: at least one step is left out, and a single step begins at the strength itself. Strength 0
    has no steps.
    """
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    scheduler.set_timesteps(sigmas=_unshifted(steps, strength), mu=_shift(scheduler.config, tokens))
    first = _first_step(steps, strength)
    return SigmaSchedule(tuple(scheduler.sigmas[first:].tolist()), tuple(scheduler.timesteps[first:].tolist()))


def _unshifted(steps: int, strength: float | None) -> list[float]:
    if steps == 1 and strength:
        return [strength]
    return [float(sigma) for sigma in np.linspace(1.0, 1 / steps, steps)]


def _first_step(steps: int, strength: float | None) -> int:
    """Index of the first step that is run."""
    if strength is None or strength == 1 or (steps == 1 and strength > 0):
        return 0
    return max(1, int(steps - steps * strength))


def _shift(config: Any, tokens: int) -> float | None:
    """The shift for a picture's size, linear in its tokens; None where the scheduler shifts every size alike."""
    if not config.use_dynamic_shifting:
        return None
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return float(tokens * slope + (config.base_shift - slope * config.base_image_seq_len))
