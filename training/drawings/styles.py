"""Drawing styles: transformations of strokes before rendering."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from training.drawings.scene import ColouredStrokes
from training.drawings.strokes import Rng, Stroke, Strokes

Style = Callable[[list[ColouredStrokes], Rng], list[ColouredStrokes]]

_NIB = np.array([0.7, -0.7])
"""Direction of the nib's edge: up and to the right."""


def broad_nib(drawings: list[ColouredStrokes], rng: Rng) -> list[ColouredStrokes]:
    """Imitates a broad nib: lines across its edge are thick, lines along it thin."""
    out = []
    for drawing in drawings:
        reach = drawing.width_px * rng.uniform(0.7, 0.9)
        strokes: Strokes = [
            stroke + reach * part * _NIB for stroke in drawing.strokes for part in (-1, -0.5, 0, 0.5, 1)
        ]
        out.append(replace(drawing, strokes=strokes, width_px=0.6 * drawing.width_px))
    return out


def loose_pencil(drawings: list[ColouredStrokes], rng: Rng) -> list[ColouredStrokes]:
    """Imitates a pencil sketch: every line is drawn twice, slightly shifted, and extended past its ends.

    The autoencoder merges thin lines that are close, so the two lines are far enough apart.
    """
    out = []
    for drawing in drawings:
        strokes: Strokes = []
        for stroke in drawing.strokes:
            for _ in range(2):
                middle = stroke.mean(axis=0)
                scaled = middle + (stroke - middle) * (1 + rng.normal(0.03, 0.02))
                strokes.append(_extend(scaled + rng.normal(0, 1.3, 2) * drawing.width_px, drawing.width_px, rng))
        out.append(replace(drawing, strokes=strokes, width_px=0.75 * drawing.width_px))
    return out


def _extend(stroke: Stroke, width_px: float, rng: Rng) -> Stroke:
    """Extends both ends straight by several line widths."""
    before, after = (
        end + (end - next_to) / max(np.hypot(*(end - next_to)), 1e-6) * width_px * rng.uniform(3, 9)
        for end, next_to in ((stroke[0], stroke[1]), (stroke[-1], stroke[-2]))
    )
    return np.concatenate([[before], stroke, [after]])
