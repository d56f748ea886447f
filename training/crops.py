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
SIDES_PX, SIDE_SHARES = (256, 384, 512, 1024), (0.25, 0.2, 0.45, 0.1)
ANY_COLOURS = 0.25
"""Share of crops that have any ink on any light paper."""
BOLD = 0.5
"""Share of crops with lines as thick as a brush's."""
BRUSHES_PX = (9, 17, 33, 49)
MOST_INK = 0.4


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
    """As drawn, or with any ink on any light paper, or with bolder lines, or both.

    On thin lines alone the autoencoder learns forms within minutes and keeps to grey ink for long: colour shows where
    there is much of it.
    """
    bold, any_colours = rng.random() < BOLD, rng.random() < ANY_COLOURS
    if not (bold or any_colours):
        return crop
    paper = crop.flatten(1).median(dim=1).values[:, None, None]
    touched = (crop - paper).abs().mean(dim=0)
    most = int(touched.argmax())
    ink = crop.flatten(1)[:, most][:, None, None]
    coverage = touched / touched.max().clamp(min=0.1)
    if bold:
        broad = brushed(coverage, int(rng.choice(BRUSHES_PX)))
        # What covers most of a crop would count as its paper.
        coverage = broad if broad.mean() < MOST_INK else coverage
    if any_colours:
        paper = torch.from_numpy(rng.uniform(0.5, 1, (3, 1, 1))).to(crop)
        ink = torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1))).to(crop)
    return paper + (ink - paper) * coverage


def brushed(coverage: torch.Tensor, brush: int) -> torch.Tensor:
    """(height, width), each line wider by `brush` pixels."""
    rows = torch.nn.functional.max_pool2d(coverage[None], (brush, 1), stride=1, padding=(brush // 2, 0))
    return torch.nn.functional.max_pool2d(rows, (1, brush), stride=1, padding=(0, brush // 2))[0]
