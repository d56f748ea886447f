"""Styles of the hand: what becomes of strokes before they are laid on paper. Knows nothing of pixels or words."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from training.drawings.scene import Inked
from training.drawings.strokes import Rng, Strokes

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
    """Searched for with a thin pencil: every line three times, each time a little elsewhere."""
    out = []
    for drawing in drawings:
        strokes: Strokes = []
        for stroke in drawing.strokes:
            for _ in range(3):
                middle = stroke.mean(axis=0)
                grown = middle + (stroke - middle) * (1 + rng.normal(0, 0.03))
                strokes.append(grown + rng.normal(0, 0.5, 2) * drawing.width_px)
        out.append(replace(drawing, strokes=strokes, width_px=0.4 * drawing.width_px))
    return out
