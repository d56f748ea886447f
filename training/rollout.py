"""The way from noise to a picture by a model's own steps: what a student learns on is where it comes by itself.

What is learned on pictures with noise alone drifts: each step of a guided student leads a little away from where it
has learned. Knows nothing of models or losses.
"""

from dataclasses import dataclass

import torch

from training.flow import schedule, shifted

WARP = 2.0
"""Schedules of a batch are shifted by up to this factor, either way, so that its pictures are at many times at once."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A step to be taken by each picture of a batch."""

    latents: torch.Tensor
    """(batch, tokens, 64), where it begins."""
    begin: torch.Tensor
    """(batch,), the times of its beginning and of its end."""
    end: torch.Tensor


class Journey:
    """Latents under way. `marks`: (batch, steps + 1), falling from each picture's first time to its last."""

    def __init__(self, latents: torch.Tensor, marks: torch.Tensor) -> None:
        self._latents, self._marks, self._place = latents, marks.to(latents.device), 0

    @property
    def ended(self) -> bool:
        return self._place + 1 == self._marks.shape[1]

    @property
    def stretch(self) -> Stretch:
        """The next one."""
        return Stretch(self._latents, self._marks[:, self._place], self._marks[:, self._place + 1])

    def go_on(self, velocity: torch.Tensor) -> None:
        """Takes the next stretch at this velocity (batch, tokens, 64)."""
        now = self.stretch
        self._latents = now.latents + (now.end - now.begin)[:, None, None] * velocity.detach()
        self._place += 1


def even_marks(count: int, steps: int) -> torch.Tensor:
    """(count, steps + 1): the same plain schedule for every picture."""
    return schedule(steps, 1.0).expand(count, -1)


def warped_marks(count: int, steps: int, factor: float) -> torch.Tensor:
    """(count, steps + 1): the schedule of that shift, for each picture shifted a little more or less."""
    factors = factor * WARP ** (2 * torch.rand(count, 1) - 1)
    return shifted(torch.linspace(1, 0, steps + 1).expand(count, -1), factors)
