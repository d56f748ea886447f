"""Words as strokes of a hand: the public-domain Hershey script, letter joined to letter. Knows nothing of pixels.

The letters come from the PyPI package Hershey-Fonts (its code MIT, the glyph data free to use).
"""

from functools import cache

import numpy as np
from HersheyFonts import HersheyFonts

from training.drawings.strokes import Rng, Strokes

FONT = "cursive"
"""A joined script of single strokes."""


@cache
def _font() -> HersheyFonts:
    font = HersheyFonts()
    font.load_default_font(FONT)
    return font


@cache
def _letters(word: str) -> tuple[tuple[tuple[float, float], ...], ...]:
    return tuple(tuple(stroke) for stroke in _font().strokes_for_text(word) if len(stroke) > 1)


def handwriting(word: str, rng: Rng) -> Strokes:
    """The word with a slant and a baseline of its own; y down, units of the font."""
    slant, rise = rng.normal(-0.1, 0.05), rng.normal(0, 0.015)
    shear = np.array([[1, slant], [rise, 1]])
    return [np.array(stroke, dtype=np.float64) @ shear.T for stroke in _letters(word)]
