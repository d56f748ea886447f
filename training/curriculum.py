"""The curriculum: the drawings and canvas sizes that the transformer is trained on at each stage."""

from dataclasses import dataclass

import numpy as np

from serve.output_sizes import SIZES
from training.canvas import Canvas
from training.drawings.sampling import Mixture
from training.drawings.scene import FRAME_PX
from training.drawings.strokes import Rng

JITTER = 0.4
"""Jitter of the training drawings. Shapes that vary less are learned sooner. The recogniser is trained with 1."""
STEADY = Mixture(two_things=0, word=0, labelled=0, jitter=0.2)
ONE = Mixture(two_things=0, word=0.5, labelled=0, longest_word=5, jitter=JITTER)
PAIR = Mixture(two_things=0.9, word=0, labelled=0.1, longest_word=5, jitter=JITTER)
LETTERS = Mixture(two_things=0, word=1, labelled=0, jitter=JITTER)

Shares = dict[str, float]
"""Names with their relative frequencies."""


@dataclass(frozen=True, slots=True)
class DatasetConfig:
    """Drawings of one kind."""

    mixture: Mixture
    size: int
    """Number of cached drawings; some are replaced at every batch."""


@dataclass(frozen=True, slots=True)
class Stage:
    until: float
    """Progress of the run, 0 to 1, at which the next stage begins."""
    datasets: Shares
    canvases: Shares


DATASETS = {
    "steady": DatasetConfig(STEADY, 1500),
    "one": DatasetConfig(ONE, 4000),
    "pair": DatasetConfig(PAIR, 4000),
    "letters": DatasetConfig(LETTERS, 6000),
}

MARGIN_TOKENS = 64
"""Number of margin tokens to train on, instead of all: the blank margin costs time and teaches little."""
_SMALLEST = "smallest"
_SIZES = {f"{megapixels} MP {ratio}": size for megapixels, sizes in SIZES.items() for ratio, size in sizes.items()}
_SQUARES = ("0.25 MP 1:1", "1 MP 1:1")


def _full(name: str) -> str:
    return f"{name} full"


CANVASES: dict[str, Canvas] = {
    _SMALLEST: Canvas.of((FRAME_PX, FRAME_PX)),
    **{name: Canvas.of(size, MARGIN_TOKENS) for name, size in _SIZES.items()},
    **{_full(name): Canvas.of(size) for name, size in _SIZES.items()},
}

ANY_CANVAS: Shares = {_SMALLEST: 3, **dict.fromkeys(_SIZES, 0.3), "0.25 MP 1:1": 3, "1 MP 1:1": 6}
_FULL_CANVAS: Shares = {
    **dict.fromkeys(map(_full, _SIZES), 0.02),
    **dict(zip(map(_full, _SQUARES), (0.5, 1.0), strict=True)),
}

STAGES = (
    Stage(0.1, {"steady": 1}, ANY_CANVAS),
    Stage(0.3, {"one": 1}, ANY_CANVAS),
    Stage(0.4, {"one": 3, "pair": 2}, ANY_CANVAS),
    Stage(1.0, {"one": 3, "pair": 2, "letters": 4}, ANY_CANVAS | _FULL_CANVAS),
)


def stage_at(progress: float, stages: tuple[Stage, ...] = STAGES) -> Stage:
    return next((stage for stage in stages if progress < stage.until), stages[-1])


def choose(shares: Shares, rng: Rng) -> str:
    weights = np.array(list(shares.values()))
    return str(rng.choice(list(shares), p=weights / weights.sum()))
