"""Scenes: what is on the paper, in words and then as strokes in pixels. Knows neither prompts nor how ink is laid."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.drawings.handwriting import handwriting
from training.drawings.nature import NATURE
from training.drawings.objects import OBJECTS
from training.drawings.strokes import Rng, Strokes, fitted, shaken

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
PAPERS: dict[str, Colour] = {"white": (252, 252, 250), "cream": (250, 240, 212), "grey": (222, 222, 224)}

Relation = Literal["left of", "right of", "above", "below"]
Size = tuple[int, int]
Box = tuple[float, float, float, float]
"""Centre x, centre y, width, height, in pixels."""
FRAME_PX = 512
"""Of paper whose shorter side is longer than this only the middle is drawn on: things and letters have a size of their
own, as a hand has its reach, so that a form spans as many tokens as at 512 by 512."""
WORD = 0.82
"""Width that a word may take, in widths of the frame."""
LETTER = 3 / 16
"""Room of a letter, in sides of the frame: three tokens at 512 by 512, and less for words of more than four letters."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing, or one word in handwriting, in one ink."""

    kind: Literal["thing", "word"]
    name: str
    ink: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One item, or two of which the first stands in `relation` to the second."""

    items: tuple[Item, ...]
    relation: Relation | None
    paper: str


@dataclass(frozen=True, slots=True)
class Inked:
    """Strokes in pixels, ready to be drawn."""

    strokes: Strokes
    ink: Colour
    width_px: float


def _boxes(scene: Scene, frame: tuple[float, float], rng: Rng, unsteadiness: float) -> list[Box]:
    width, height = frame
    short = min(frame)
    if len(scene.items) == 1:
        part = 0.74 + unsteadiness * rng.uniform(-0.08, 0.08)
        wide = width * WORD if scene.items[0].kind == "word" else short * part
        # The picture's middle, a little beside it.
        x, y = np.array([width, height]) / 2 + unsteadiness * rng.normal(0, 0.02, 2) * short
        return [(float(x), float(y), wide, short * part)]
    beside = scene.relation in ("left of", "right of")
    part = 0.41 + unsteadiness * rng.uniform(-0.03, 0.03)
    if beside:
        side = min(width * part, height * 0.8)
        boxes = [(width * 0.26, height / 2, side, side), (width * 0.74, height / 2, side, side)]
    else:
        side = min(height * part, width * 0.8)
        upper, lower = (width * WORD if item.kind == "word" else side for item in scene.items)
        boxes = [(width / 2, height * 0.26, upper, side), (width / 2, height * 0.74, lower, side)]
    jitter = unsteadiness * rng.normal(0, 0.012, (2, 2)) * short
    boxes = [(b[0] + j[0], b[1] + j[1], b[2], b[3]) for b, j in zip(boxes, jitter, strict=True)]
    return boxes if scene.relation in ("left of", "above") else boxes[::-1]


def inked(scene: Scene, size: Size, rng: Rng, unsteadiness: float = 1.0, frame_px: float = FRAME_PX) -> list[Inked]:
    """The scene's strokes laid out on paper of `size` (width, height), by a hand as unsteady as told."""
    scale = min(1.0, frame_px / min(size))
    frame = size[0] * scale, size[1] * scale
    left, top = (size[0] - frame[0]) / 2, (size[1] - frame[1]) / 2
    width_px = rng.uniform(0.017, 0.022) * min(frame)
    if len(scene.items) == 2:
        width_px *= 0.85
    out = []
    for item, (x, y, wide, high) in zip(scene.items, _boxes(scene, frame, rng, unsteadiness), strict=True):
        if item.kind == "word":
            letter_px = min(LETTER * min(frame), wide / len(item.name), high / 2)
            strokes = shaken(handwriting(item.name, rng), rng, 0.5 * unsteadiness)
            placed = [stroke * letter_px + (left + x, top + y) for stroke in strokes]
        else:
            strokes = shaken(THINGS[item.name](rng), rng, unsteadiness)
            placed = fitted(strokes, (left + x, top + y), (wide, high))
        tint = rng.normal(0, 6, 3)
        red, green, blue = (int(np.clip(c + t, 0, 255)) for c, t in zip(INKS[item.ink], tint, strict=True))
        out.append(Inked(placed, (red, green, blue), width_px))
    return out
