"""Rollouts, which train a student on the latents that its own steps produce.

A student that is trained only on noised images drifts, because its own steps leave that distribution.
"""

from dataclasses import dataclass

import torch

from training.flow_matching import apply_shift, schedule

SHIFT_VARIATION = 2.0
"""The schedule's shift varies by up to this factor within a batch, so that a batch covers many times."""


@dataclass(frozen=True, slots=True)
class Interval:
    """One step for each image of a batch."""

    latents: torch.Tensor
    """`[batch, tokens, 64]` at the beginning of the step."""
    begin: torch.Tensor
    """`[batch]`, the times at which the step begins and ends."""
    end: torch.Tensor


class Rollout:
    """The latents of a batch between its steps. `timesteps` is `[batch, steps + 1]`, descending."""

    def __init__(self, latents: torch.Tensor, timesteps: torch.Tensor) -> None:
        self._latents, self._timesteps, self._index = latents, timesteps.to(latents.device), 0

    @property
    def finished(self) -> bool:
        return self._index + 1 == self._timesteps.shape[1]

    @property
    def interval(self) -> Interval:
        """The next step."""
        return Interval(self._latents, self._timesteps[:, self._index], self._timesteps[:, self._index + 1])

    def advance(self, velocity: torch.Tensor) -> None:
        """Takes the next step with this velocity, `[batch, tokens, 64]`."""
        interval = self.interval
        self._latents = interval.latents + (interval.end - interval.begin)[:, None, None] * velocity.detach()
        self._index += 1


def even_timesteps(count: int, steps: int) -> torch.Tensor:
    """Returns the unshifted schedule for every image, `[count, steps + 1]`."""
    return schedule(steps, 1.0).expand(count, -1)


def varied_timesteps(count: int, steps: int, factor: float) -> torch.Tensor:
    """Returns the schedule with a randomly varied shift per image, `[count, steps + 1]`."""
    factors = factor * SHIFT_VARIATION ** (2 * torch.rand(count, 1) - 1)
    return apply_shift(torch.linspace(1, 0, steps + 1).expand(count, -1), factors)
