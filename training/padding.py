"""Where the square that is drawn on lies on paper of a size, and what of the blank paper around it is learned.

Knows nothing of what is drawn.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from serve.model_specs import Size
from training.drawings.scene import corner_px
from training.drawings.strokes import Rng
from training.flow import Place
from training.latents import STRIDE_PX, Grid
from training.squares import SIDE


@dataclass(frozen=True)
class Paper:
    """Paper of so many rows and columns of tokens."""

    grid: Grid
    around: int | None = None
    """How many of the tokens around the square are learned with it, by chance; all if None."""

    @classmethod
    def of(cls, size: Size, around: int | None = None) -> "Paper":
        """Paper of `size` (width, height) in pixels, whole if it has no more than `around` tokens beside the square."""
        grid = (size[1] // STRIDE_PX, size[0] // STRIDE_PX)
        few = around is not None and grid[0] * grid[1] - SIDE**2 <= around
        return cls(grid, None if few else around)

    @property
    def corner(self) -> Grid:
        """Tokens above the square and to the left of it."""
        rows, columns = self.grid
        left, top = corner_px((columns * STRIDE_PX, rows * STRIDE_PX))
        return int(top) // STRIDE_PX, int(left) // STRIDE_PX

    @cached_property
    def _tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the square's tokens, row by row, and of all others."""
        top, left = self.corner
        numbers = np.arange(self.grid[0] * self.grid[1]).reshape(self.grid)
        square = numbers[top : top + SIDE, left : left + SIDE].ravel()
        return square, np.setdiff1d(numbers, square)

    @property
    def taken(self) -> int:
        """Tokens of a `place`."""
        square, others = self._tokens
        return len(square) + (len(others) if self.around is None else self.around)

    def place(self, rng: Rng) -> Place:
        """The square's tokens first, then those around it, each of which stands for some that were left out."""
        square, others = self._tokens
        if self.around is None:
            return Place(*self.grid, torch.from_numpy(np.concatenate([square, others])))
        some = rng.choice(others, self.around, replace=False)
        counts = torch.ones(self.taken)
        counts[len(square) :] = len(others) / self.around
        return Place(*self.grid, torch.from_numpy(np.concatenate([square, some])), counts)

    def laid_out(self, code: torch.Tensor) -> torch.Tensor:
        """Latents (batch, taken, 64) of a `place`, of the square's tokens with a blank one behind them."""
        blank = code[:, -1:].expand(-1, self.taken - SIDE**2, -1)
        return torch.cat([code[:, :-1], blank], 1)
