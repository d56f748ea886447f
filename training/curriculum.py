"""What the transformer is taught, in which order: one thing by a steady hand first, then pairs, then words."""

from dataclasses import dataclass

import numpy as np

from serve.inputs import SIZES
from training.drawings.sampling import Mixture
from training.drawings.scene import FRAME_PX
from training.drawings.strokes import Rng
from training.padding import Paper

HAND = 0.4
"""Unsteadiness of what is taught: the less a form varies, the sooner it is learned. The judge knows hands of 1."""
STEADY = Mixture(two_things=0, word=0, labelled=0, unsteadiness=0.2)
ONE = Mixture(two_things=0, word=0.5, labelled=0, longest_word=5, unsteadiness=HAND)
PAIR = Mixture(two_things=0.9, word=0, labelled=0.1, longest_word=5, unsteadiness=HAND)
LETTERS = Mixture(two_things=0, word=1, labelled=0, unsteadiness=HAND)

Shares = dict[str, float]
"""Names, and how often each is taken."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """Drawings of one kind."""

    mixture: Mixture
    pictures: int
    """Kept at hand; some are renewed all the time."""


@dataclass(frozen=True, slots=True)
class Stage:
    until: float
    """Progress of the run, 0 to 1, at which the next stage begins."""
    lessons: Shares
    papers: Shares


LESSONS = {
    "steady": Lesson(STEADY, 1500),
    "one": Lesson(ONE, 4000),
    "pair": Lesson(PAIR, 4000),
    "letters": Lesson(LETTERS, 6000),
}

AROUND = 64
"""The paper around costs much and teaches little: so many of its tokens stand for all."""
_SMALLEST = "smallest"
_SIZES = {f"{megapixels} MP {ratio}": size for megapixels, sizes in SIZES.items() for ratio, size in sizes.items()}
_SQUARES = ("0.25 MP 1:1", "1 MP 1:1")


def _whole(name: str) -> str:
    return f"{name} whole"


PAPERS: dict[str, Paper] = {
    _SMALLEST: Paper.of((FRAME_PX, FRAME_PX)),
    **{name: Paper.of(size, AROUND) for name, size in _SIZES.items()},
    **{_whole(name): Paper.of(size) for name, size in _SIZES.items()},
}

ANY_PAPER: Shares = {_SMALLEST: 3, **dict.fromkeys(_SIZES, 0.3), "0.25 MP 1:1": 3, "1 MP 1:1": 6}
_WHOLE_PAPER: Shares = {
    **dict.fromkeys(map(_whole, _SIZES), 0.02),
    **dict(zip(map(_whole, _SQUARES), (0.5, 1.0), strict=True)),
}

STAGES = (
    Stage(0.1, {"steady": 1}, ANY_PAPER),
    Stage(0.3, {"one": 1}, ANY_PAPER),
    Stage(0.4, {"one": 3, "pair": 2}, ANY_PAPER),
    Stage(1.0, {"one": 3, "pair": 2, "letters": 4}, ANY_PAPER | _WHOLE_PAPER),
)


def stage_at(progress: float, stages: tuple[Stage, ...] = STAGES) -> Stage:
    return next((stage for stage in stages if progress < stage.until), stages[-1])


def one_of(shares: Shares, rng: Rng) -> str:
    weights = np.array(list(shares.values()))
    return str(rng.choice(list(shares), p=weights / weights.sum()))
