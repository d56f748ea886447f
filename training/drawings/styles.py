"""Styles of the hand: what becomes of strokes before they are laid on paper. Knows nothing of pixels or words."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from training.drawings.scene import Inked
from training.drawings.strokes import Rng, Stroke, Strokes

Style = Callable[[list[Inked], Rng], list[Inked]]

_NIB = np.array([0.7, -0.7])
"""How a broad nib is held: up to the right."""


def broad_nib(drawings: list[Inked], rng: Rng) -> list[Inked]:
    """Written with a broad nib: thick across its edge, thin along it."""
    out = []
    for drawing in drawings:
        reach = drawing.width_px * rng.uniform(0.7, 0.9)
        strokes: Strokes = [
            stroke + reach * part * _NIB for stroke in drawing.strokes for part in (-1, -0.5, 0, 0.5, 1)
        ]
        out.append(replace(drawing, strokes=strokes, width_px=0.6 * drawing.width_px))
    return out


def loose_pencil(drawings: list[Inked], rng: Rng) -> list[Inked]:
    """Searched for with a pencil: every line twice, each time a little elsewhere and past its ends.

    Wide enough apart for the autoencoder to keep: it takes thinner and closer lines for one.
    """
    out = []
    for drawing in drawings:
        strokes: Strokes = []
        for stroke in drawing.strokes:
            for _ in range(2):
                middle = stroke.mean(axis=0)
                grown = middle + (stroke - middle) * (1 + rng.normal(0.03, 0.02))
                strokes.append(_past_its_ends(grown + rng.normal(0, 1.3, 2) * drawing.width_px, drawing.width_px, rng))
        out.append(replace(drawing, strokes=strokes, width_px=0.75 * drawing.width_px))
    return out


def _past_its_ends(stroke: Stroke, width_px: float, rng: Rng) -> Stroke:
    """Both ends straight on for some widths of the line."""
    before, after = (
        end + (end - next_to) / max(np.hypot(*(end - next_to)), 1e-6) * width_px * rng.uniform(3, 9)
        for end, next_to in ((stroke[0], stroke[1]), (stroke[-1], stroke[-2]))
    )
    return np.concatenate([[before], stroke, [after]])
