"""What the autoencoder learns from: pieces of drawings in colours of every kind. Knows nothing of models."""

import numpy as np
import torch

from training.drawings.ink import rendered
from training.drawings.sampling import Mixture, sampled
from training.drawings.strokes import Rng
from training.machine import Machine
from training.pixels import to_tensor

POOL = 256
"""Pictures kept at hand; crops are cheap, drawing is not."""
SIDES_PX, SIDE_SHARES = (224, 256, 320, 512), (0.3, 0.4, 0.15, 0.15)
AS_DRAWN, ANY_COLOURS = 0.45, 0.4
"""Shares of crops; the rest are bare fields of colour."""


def drawn(rng: Rng) -> torch.Tensor:
    """(3, side, side), one of several sizes."""
    side = int(rng.choice(SIDES_PX, p=SIDE_SHARES))
    return to_tensor(rendered(sampled(rng, Mixture(word=0.4)), (side, side), rng))


class Pool:
    """Pictures on the machine's device, some replaced at every step."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine, self.rng = machine, np.random.default_rng([seed, 1])
        self._new = machine.endless(drawn, seed)
        self.pictures = [self._next() for _ in range(POOL * machine.batch_factor)]

    def _next(self) -> torch.Tensor:
        return next(self._new).to(self.machine.device)

    def crops(self, count: int, side: int) -> torch.Tensor:
        """(count, 3, side, side), mostly from where there is ink."""
        for _ in range(self.machine.batch_factor):
            self.pictures[int(self.rng.integers(len(self.pictures)))] = self._next()
        return torch.stack([self._crop(side) for _ in range(count)])

    def _crop(self, side: int) -> torch.Tensor:
        picture = self.pictures[int(self.rng.integers(len(self.pictures)))]
        candidates = []
        for _ in range(2):
            top, left = (int(self.rng.integers(length - side + 1)) for length in picture.shape[1:])
            candidates.append(picture[:, top : top + side, left : left + side])
        best = max(candidates, key=lambda crop: float(crop.std()))
        return recoloured(best.flip(2) if self.rng.random() < 0.3 else best, self.rng)


def recoloured(crop: torch.Tensor, rng: Rng) -> torch.Tensor:
    """As drawn, or with any ink on any paper, or bare fields of colour.

    From eight inks on three papers alone the autoencoder learns forms within minutes, and colour hardly at all.
    """
    kind = rng.random()
    if kind < AS_DRAWN:
        return crop
    if kind < AS_DRAWN + ANY_COLOURS:
        paper, ink = (torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1))).to(crop) for _ in range(2))
        touched = (crop - crop.flatten(1).median(dim=1).values[:, None, None]).abs().mean(dim=0)
        return paper + (ink - paper) * (touched / touched.max().clamp(min=0.1))
    cells = torch.from_numpy(rng.uniform(-1, 1, (1, 3, *rng.integers(1, 9, 2)))).to(crop)
    return torch.nn.functional.interpolate(cells, size=crop.shape[1:], mode="bilinear")[0]
