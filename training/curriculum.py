"""What the transformer is taught, in which order: one thing by a steady hand first, then pairs, then whole paper."""

from dataclasses import dataclass, replace

from serve.catalog import SIZES, Size
from training.bank import STRIDE_PX, Grid
from training.drawings.sampling import Mixture
from training.drawings.scene import FRAME_PX, corner_px

HAND = 0.4
"""Unsteadiness of what is taught: the less a form varies, the sooner it is learned. The judge knows hands of 1."""
STEADY = Mixture(two_things=0, word=0, labelled=0, unsteadiness=0.2)
ONE = Mixture(two_things=0, word=0.5, labelled=0, longest_word=5, unsteadiness=HAND)
PAIR = Mixture(two_things=0.9, word=0, labelled=0.1, longest_word=5, unsteadiness=HAND)
ALL = Mixture(unsteadiness=HAND)
LETTERS = Mixture(two_things=0, word=1, labelled=0, unsteadiness=HAND)
ORIGIN = (0, 0)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Pictures of one size and kind."""

    shelf: str
    """Where they are kept; lessons may share them."""
    grid: Grid
    mixture: Mixture
    pictures: int
    """Kept at hand; some are renewed all the time."""
    batch: int
    corners: tuple[Grid, ...] = (ORIGIN,)
    """Tokens above and to the left of it: where it may lie on larger paper. The paper around costs much and teaches
    little, so it is mostly the square that is drawn on that is learned."""
    around: int | None = None
    """How many tokens, by chance, are learned with that square; all if None."""


@dataclass(frozen=True, slots=True)
class Stage:
    until: float
    """Progress of the run, 0 to 1, at which the next stage begins."""
    lessons: dict[str, float]
    """Names of lessons and how often each is taken."""


SIDE = FRAME_PX // STRIDE_PX
"""Tokens a side of the square that is drawn on."""


def middle(size: Size) -> Grid:
    """Where that square lies on paper of `size` (width, height)."""
    left, top = corner_px(size)
    return int(top) // STRIDE_PX, int(left) // STRIDE_PX


_SQUARES = (ORIGIN, middle(SIZES["0.25"]["1:1"]), middle(SIZES["1"]["1:1"]))
_OTHERS = tuple(middle(size) for sizes in SIZES.values() for size in sizes.values())
CORNERS = (*_OTHERS, *(len(_OTHERS) * (*_SQUARES, _SQUARES[-1])))
"""Paper of 1024 by 1024 twice of five times, the two smaller squares once each, and once any shape."""


AROUND = 96


def _papers(megapixels: str, pictures: int, square_pictures: int) -> dict[str, Lesson]:
    """For each shape that the service offers, some of its tokens; the square has more pictures."""
    lessons = {}
    for ratio, (width, height) in SIZES[megapixels].items():
        name = f"{megapixels} MP {ratio}"
        kept = square_pictures if ratio == "1:1" else pictures
        lessons[name] = Lesson(name, (height // STRIDE_PX, width // STRIDE_PX), ALL, kept, 24, around=AROUND)
    return lessons


def _whole(papers: dict[str, Lesson], batch: int) -> dict[str, Lesson]:
    """The same with all their tokens."""
    return {f"{name} whole": replace(lesson, batch=batch, around=None) for name, lesson in papers.items()}


def _written(papers: dict[str, Lesson], megapixels: str, pictures: int) -> dict[str, Lesson]:
    """Words alone on square paper."""
    name = f"{megapixels} MP letters"
    square = papers[f"{megapixels} MP 1:1"]
    return {name: replace(square, shelf=name, mixture=LETTERS, pictures=pictures)}


_MEDIUM, _LARGE = _papers("0.25", 80, 400), _papers("1", 32, 160)
_WRITTEN_MEDIUM, _WRITTEN_LARGE = _written(_MEDIUM, "0.25", 300), _written(_LARGE, "1", 120)
_WRITTEN = _WRITTEN_MEDIUM | _WRITTEN_LARGE
_WHOLE = _whole(_MEDIUM | _WRITTEN_MEDIUM, 16) | _whole(_LARGE | _WRITTEN_LARGE, 5)
LESSONS: dict[str, Lesson] = {
    "steady": Lesson("steady", (SIDE, SIDE), STEADY, 1500, 48, CORNERS),
    "one": Lesson("one", (SIDE, SIDE), ONE, 4000, 48, CORNERS),
    "pair": Lesson("pair", (SIDE, SIDE), PAIR, 2000, 48, CORNERS),
    "letters": Lesson("letters", (SIDE, SIDE), LETTERS, 3000, 48, CORNERS),
    **_MEDIUM,
    **_LARGE,
    **_WRITTEN,
    **_WHOLE,
}

STAGES = (
    Stage(0.1, {"steady": 1}),
    Stage(0.3, {"one": 1}),
    Stage(0.4, {"one": 3, "pair": 2}),
    Stage(
        1.0,
        {
            "one": 2,
            "pair": 1,
            "letters": 3,
            **dict.fromkeys((*_MEDIUM, *_LARGE), 0.12),
            "0.25 MP 1:1": 1,
            "1 MP 1:1": 1.5,
            **dict.fromkeys(_WRITTEN, 1.2),
            **dict.fromkeys(_WHOLE, 0.03),
            "0.25 MP 1:1 whole": 0.5,
            "1 MP 1:1 whole": 1,
            "0.25 MP letters whole": 0.3,
            "1 MP letters whole": 0.6,
        },
    ),
)


def lessons_at(progress: float, stages: tuple[Stage, ...] = STAGES) -> dict[str, float]:
    return next((stage.lessons for stage in stages if progress < stage.until), stages[-1].lessons)
