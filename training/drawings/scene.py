"""Scenes, and their layout as strokes in pixels."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.drawings.handwriting import handwriting
from training.drawings.nature import NATURE
from training.drawings.objects import OBJECTS
from training.drawings.strokes import Rng, Strokes, fitted, jittered

THINGS = {draw.__name__: draw for draw in (*NATURE, *OBJECTS)}

Colour = tuple[int, int, int]
INKS: dict[str, Colour] = {
    "black": (28, 28, 32),
    "red": (208, 32, 40),
    "blue": (30, 70, 200),
    "green": (24, 140, 60),
    "orange": (240, 130, 20),
    "purple": (130, 50, 170),
    "brown": (125, 75, 35),
    "pink": (240, 100, 160),
}
BACKGROUNDS: dict[str, Colour] = {"white": (252, 252, 250), "cream": (250, 240, 212), "grey": (222, 222, 224)}

Relation = Literal["left of", "right of", "above", "below"]
Size = tuple[int, int]
Box = tuple[float, float, float, float]
"""Centre x, centre y, width, height, in pixels."""
FRAME_PX = 256
"""Side of the drawn square in the middle of a canvas. It has the same size on any canvas, so that a shape always spans
the same number of tokens."""
ALIGNMENT_PX = 32
"""The square's corner is a multiple of this, so that the same lines fall into the same tokens on any canvas."""
MAX_WORD_WIDTH = 0.82
"""Largest width of a word, in widths of the square."""
LETTER_WIDTH = 1 / 4
"""Width of a letter, in sides of the square: two tokens, or less in words of more than three letters."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing, or one handwritten word, in one ink."""

    kind: Literal["thing", "word"]
    name: str
    ink: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One item, or two, of which the first is in `relation` to the second."""

    items: tuple[Item, ...]
    relation: Relation | None
    background: str


@dataclass(frozen=True, slots=True)
class ColouredStrokes:
    """Strokes in pixels with their colour and width."""

    strokes: Strokes
    ink: Colour
    width_px: float


def corner_px(size: Size, frame_px: float = FRAME_PX) -> tuple[float, float]:
    """Returns the left and top edge of the drawn square."""
    left, top = ((side - frame_px) / 2 // ALIGNMENT_PX * ALIGNMENT_PX for side in size)
    return left, top


def _boxes(scene: Scene, frame_px: float, rng: Rng, jitter: float) -> list[Box]:
    near, half, far = (part * frame_px for part in (0.26, 0.5, 0.74))
    if len(scene.items) == 1:
        side = (0.74 + jitter * rng.uniform(-0.08, 0.08)) * frame_px
        wide = MAX_WORD_WIDTH * frame_px if scene.items[0].kind == "word" else side
        # Near the middle.
        x, y = half + jitter * rng.normal(0, 0.02, 2) * frame_px
        return [(float(x), float(y), wide, side)]
    side = (0.41 + jitter * rng.uniform(-0.03, 0.03)) * frame_px
    if scene.relation in ("left of", "right of"):
        boxes = [(near, half, side, side), (far, half, side, side)]
    else:
        upper, lower = (MAX_WORD_WIDTH * frame_px if item.kind == "word" else side for item in scene.items)
        boxes = [(half, near, upper, side), (half, far, lower, side)]
    offsets = jitter * rng.normal(0, 0.012, (2, 2)) * frame_px
    boxes = [(b[0] + j[0], b[1] + j[1], b[2], b[3]) for b, j in zip(boxes, offsets, strict=True)]
    return boxes if scene.relation in ("left of", "above") else boxes[::-1]


def scene_strokes(
    scene: Scene, size: Size, rng: Rng, jitter: float = 1.0, frame_px: float = FRAME_PX
) -> list[ColouredStrokes]:
    """Lays out the scene's strokes on a canvas of `size` (width, height)."""
    frame_px = min(frame_px, *size)
    left, top = corner_px(size, frame_px)
    width_px = rng.uniform(0.017, 0.022) * frame_px
    if len(scene.items) == 2:
        width_px *= 0.85
    out = []
    for item, (x, y, wide, high) in zip(scene.items, _boxes(scene, frame_px, rng, jitter), strict=True):
        if item.kind == "word":
            letter_px = min(LETTER_WIDTH * frame_px, wide / len(item.name), high / 2)
            strokes = jittered(handwriting(item.name, rng), rng, 0.5 * jitter)
            placed = [stroke * letter_px + (left + x, top + y) for stroke in strokes]
        else:
            strokes = jittered(THINGS[item.name](rng), rng, jitter)
            placed = fitted(strokes, (left + x, top + y), (wide, high))
        tint = rng.normal(0, 6, 3)
        red, green, blue = (int(np.clip(c + t, 0, 255)) for c, t in zip(INKS[item.ink], tint, strict=True))
        out.append(ColouredStrokes(placed, (red, green, blue), width_px))
    return out
