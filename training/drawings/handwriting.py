"""Joined handwriting as strokes, from the public-domain Hershey script.

The letters come from the PyPI package Hershey-Fonts (code under the MIT licence, glyph data free to use). All letters
are equally wide, so a letter's position depends only on the number of letters.
"""

from functools import cache

import numpy as np
from HersheyFonts import HersheyFonts

from training.drawings.strokes import Rng, Stroke, Strokes, line

FONT = "cursive"
"""A script font of single strokes that join."""
_CELL = 18.0
"""Width of a letter's cell in the font's units: that of an n with its joins."""
_JOIN_Y, _MIDDLE_Y = 4.0, 4.5
"""Heights, y down, at which every letter begins and ends, and of the middle of an a."""


@cache
def _font() -> HersheyFonts:
    font = HersheyFonts()
    font.load_default_font(FONT)
    return font


@cache
def _letter(letter: str) -> tuple[Stroke, ...]:
    """Returns strokes in a cell from -1/2 to 1/2; wide letters are condensed, narrow ones get longer joins."""
    strokes = [np.array(stroke, dtype=np.float64) for stroke in _font().strokes_for_text(letter) if len(stroke) > 1]
    advance = max(stroke[:, 0].max() for stroke in strokes)
    condensed = min(1.0, _CELL / advance)
    left = (_CELL - condensed * advance) / 2
    placed = [stroke * (condensed, 1.0) + (left, 0.0) for stroke in strokes]
    if left:
        placed += [line((0, _JOIN_Y), (left, _JOIN_Y)), line((_CELL - left, _JOIN_Y), (_CELL, _JOIN_Y))]
    return tuple((stroke - (_CELL / 2, _MIDDLE_Y)) / _CELL for stroke in placed)


def handwriting(word: str, rng: Rng) -> Strokes:
    """Returns the word's strokes around the origin, with random slant and baseline; a cell is 1 wide, y down."""
    slant, rise = rng.normal(-0.1, 0.05), rng.normal(0, 0.015)
    shear = np.array([[1, slant], [rise, 1]])
    positions = np.arange(len(word)) - (len(word) - 1) / 2
    return [
        (stroke + np.array([position, 0])) @ shear.T
        for letter, position in zip(word, positions, strict=True)
        for stroke in _letter(letter)
    ]
