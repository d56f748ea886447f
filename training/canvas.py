"""Canvases: the position of the drawn square, and the tokens of the blank margin that are trained on."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from serve.model_specs import Size
from training.drawings.scene import corner_px
from training.drawings.strokes import Rng
from training.flow_matching import TokenLayout
from training.latents import STRIDE_PX, Grid
from training.square_latents import SIDE


@dataclass(frozen=True)
class Canvas:
    """A canvas size in tokens, with the drawn square in its middle."""

    grid: Grid
    margin_tokens: int | None = None
    """Number of random margin tokens to train on; None means all."""

    @classmethod
    def of(cls, size: Size, margin_tokens: int | None = None) -> "Canvas":
        """Returns a canvas of `size` (width, height) in pixels. `margin_tokens` has no effect on a smaller margin."""
        grid = (size[1] // STRIDE_PX, size[0] // STRIDE_PX)
        has_few = margin_tokens is not None and grid[0] * grid[1] - SIDE**2 <= margin_tokens
        return cls(grid, None if has_few else margin_tokens)

    @property
    def corner(self) -> Grid:
        """Rows above the square and columns to the left of it."""
        rows, columns = self.grid
        left, top = corner_px((columns * STRIDE_PX, rows * STRIDE_PX))
        return int(top) // STRIDE_PX, int(left) // STRIDE_PX

    @cached_property
    def _tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the square's tokens, row by row, and of the margin's."""
        top, left = self.corner
        indices = np.arange(self.grid[0] * self.grid[1]).reshape(self.grid)
        square = indices[top : top + SIDE, left : left + SIDE].ravel()
        return square, np.setdiff1d(indices, square)

    @property
    def token_count(self) -> int:
        """Number of tokens in a layout."""
        square, margin = self._tokens
        return len(square) + (len(margin) if self.margin_tokens is None else self.margin_tokens)

    def layout(self, rng: Rng) -> TokenLayout:
        """Returns a layout with the square's tokens first, then the margin tokens, each of which stands for several."""
        square, margin = self._tokens
        if self.margin_tokens is None:
            return TokenLayout(*self.grid, torch.from_numpy(np.concatenate([square, margin])))
        sampled = rng.choice(margin, self.margin_tokens, replace=False)
        multiplicity = torch.ones(self.token_count)
        multiplicity[len(square) :] = len(margin) / self.margin_tokens
        return TokenLayout(*self.grid, torch.from_numpy(np.concatenate([square, sampled])), multiplicity)

    def lay_out(self, encoded: torch.Tensor) -> torch.Tensor:
        """Returns latents `[batch, token_count, 64]` for a `layout`, from the output of `encode_square`."""
        blank = encoded[:, -1:].expand(-1, self.token_count - SIDE**2, -1)
        return torch.cat([encoded[:, :-1], blank], 1)
