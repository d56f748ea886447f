"""Random crops of drawings for the autoencoder's training, some recoloured or with bolder lines."""

import numpy as np
import torch

from training.drawings.render import render
from training.drawings.sampling import Mixture, sample_scene
from training.drawings.strokes import Rng
from training.hardware import Machine
from training.image_tensors import to_tensor

POOL_SIZE = 256
"""Drawings kept in memory, because drawing is slower than cropping."""
SIDES_PX, SIDE_SHARES = (256, 384, 512, 1024), (0.25, 0.2, 0.45, 0.1)
RANDOM_COLOURS_SHARE = 0.25
"""Share of crops with random ink and background colours."""
BOLD_SHARE = 0.5
"""Share of crops with thicker lines."""
LINE_WIDTHS_PX = (9, 17, 33, 49)
MAX_INK_COVERAGE = 0.4


def draw_example(rng: Rng) -> torch.Tensor:
    """Returns one drawing, `[3, side, side]`, of one of several sizes."""
    side = int(rng.choice(SIDES_PX, p=SIDE_SHARES))
    return to_tensor(render(sample_scene(rng, Mixture(word=0.4)), (side, side), rng))


class DrawingPool:
    """Drawings on the machine's device; some are replaced at every step."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine, self.rng = machine, np.random.default_rng([seed, 1])
        self._new = machine.stream(draw_example, seed)
        self.images = [self._next() for _ in range(POOL_SIZE * machine.batch_factor)]

    def _next(self) -> torch.Tensor:
        return next(self._new).to(self.machine.device)

    def crops(self, count: int, side: int) -> torch.Tensor:
        """Returns `[count, 3, side, side]`, mostly from regions with ink."""
        for _ in range(self.machine.batch_factor):
            self.images[int(self.rng.integers(len(self.images)))] = self._next()
        return torch.stack([self._crop(side) for _ in range(count)])

    def _crop(self, side: int) -> torch.Tensor:
        image = self.images[int(self.rng.integers(len(self.images)))]
        candidates = []
        for _ in range(2):
            top, left = (int(self.rng.integers(length - side + 1)) for length in image.shape[1:])
            candidates.append(image[:, top : top + side, left : left + side])
        best = max(candidates, key=lambda crop: float(crop.std()))
        return recolour(best.flip(2) if self.rng.random() < 0.3 else best, self.rng)


def recolour(crop: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Returns the crop unchanged, with random colours, with bolder lines, or with both.

    With thin lines alone, the autoencoder learns shapes within minutes, but ink stays grey for a long time.
    """
    bold, random_colours = rng.random() < BOLD_SHARE, rng.random() < RANDOM_COLOURS_SHARE
    if not (bold or random_colours):
        return crop
    background = crop.flatten(1).median(dim=1).values[:, None, None]
    ink_mask = (crop - background).abs().mean(dim=0)
    peak = int(ink_mask.argmax())
    ink = crop.flatten(1)[:, peak][:, None, None]
    coverage = ink_mask / ink_mask.max().clamp(min=0.1)
    if bold:
        thick = thicken(coverage, int(rng.choice(LINE_WIDTHS_PX)))
        # If ink covered most of a crop, the loss would take it for the background.
        coverage = thick if thick.mean() < MAX_INK_COVERAGE else coverage
    if random_colours:
        background = torch.from_numpy(rng.uniform(0.5, 1, (3, 1, 1))).to(crop)
        ink = torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1))).to(crop)
    return background + (ink - background) * coverage


def thicken(coverage: torch.Tensor, brush: int) -> torch.Tensor:
    """Widens each line of `[height, width]` by `brush` pixels."""
    rows = torch.nn.functional.max_pool2d(coverage[None], (brush, 1), stride=1, padding=(brush // 2, 0))
    return torch.nn.functional.max_pool2d(rows, (1, brush), stride=1, padding=(0, brush // 2))[0]
