"""What the transformer is taught, in which order: one thing by a steady hand first, large pictures and pairs last."""

from dataclasses import dataclass

from serve.catalog import SIZES, Size
from training.bank import STRIDE_PX, Grid
from training.drawings.sampling import Mixture

HAND = 0.4
"""Unsteadiness of what is taught: the less a form varies, the sooner it is learned. The judge knows hands of 1."""
STEADY = Mixture(two_things=0, word=0, labelled=0, unsteadiness=0.2)
ONE = Mixture(two_things=0, word=0.5, labelled=0, longest_word=5, unsteadiness=HAND)
PAIR = Mixture(two_things=0.9, word=0, labelled=0.1, longest_word=5, unsteadiness=HAND)
ALL = Mixture(unsteadiness=HAND)
ORIGIN = (0, 0)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Pictures of one size and kind."""

    name: str
    grid: Grid
    mixture: Mixture
    pictures: int
    """Kept at hand; some are renewed all the time."""
    batch: int
    corners: tuple[Grid, ...] = (ORIGIN,)
    """Tokens above and to the left of it: where a picture may lie on larger paper. The paper around costs much and
    teaches little, so of large pictures it is mostly their middle that is learned."""


@dataclass(frozen=True, slots=True)
class Stage:
    until: float
    """Progress of the run, 0 to 1, at which the next stage begins."""
    lessons: dict[str, float]
    """Names of lessons and how often each is taken."""


_SIDE = 16
"""Tokens a side at 512 by 512. On larger paper things are no larger, so its middle of this size shows all of one."""


def middle(size: Size) -> Grid:
    """Where that middle lies on paper of `size` (width, height)."""
    width, height = size
    return (height // STRIDE_PX - _SIDE) // 2, (width // STRIDE_PX - _SIDE) // 2


SQUARE_MIDDLE = middle(SIZES["1"]["1:1"])
FURTHEST = max(max(middle(size)) for size in SIZES["1"].values())
ANYWHERE = tuple((top, left) for top in range(FURTHEST + 1) for left in range(FURTHEST + 1))
"""Places that no table of sizes holds too: what is drawn must follow the middle of the paper, wherever that lies."""
CORNERS = (*ANYWHERE, *(3 * len(ANYWHERE) * (ORIGIN, SQUARE_MIDDLE, SQUARE_MIDDLE)))
"""The two squares nine times of ten: with half of the time it took long to learn any."""


def _of_the_service(megapixels: str, pictures: int, square_pictures: int, batch: int) -> dict[str, Lesson]:
    """One lesson for each shape that the service offers, the square with more pictures."""
    lessons = {}
    for ratio, (width, height) in SIZES[megapixels].items():
        name = f"{megapixels} MP {ratio}"
        kept = square_pictures if ratio == "1:1" else pictures
        lessons[name] = Lesson(name, (height // STRIDE_PX, width // STRIDE_PX), ALL, kept, batch)
    return lessons


_MEDIUM = _of_the_service("0.25", 150, 400, batch=16)
_LARGE = _of_the_service("1", 30, 150, batch=8)
LESSONS: dict[str, Lesson] = {
    "steady": Lesson("steady", (_SIDE, _SIDE), STEADY, 600, 16),
    "one": Lesson("one", (_SIDE, _SIDE), ONE, 2400, 16, CORNERS),
    "pair": Lesson("pair", (_SIDE, _SIDE), PAIR, 1200, 16, CORNERS),
    "small": Lesson("small", (8, 8), ALL, 1500, 32),
    "middling": Lesson("middling", (12, 12), ALL, 800, 24),
    **_MEDIUM,
    **_LARGE,
}

STAGES = (
    Stage(0.11, {"steady": 1}),
    Stage(0.2, {"one": 1}),
    Stage(0.36, {"one": 6, "pair": 4, "small": 2, "middling": 2}),
    Stage(
        1.0,
        {
            "one": 5,
            "pair": 4,
            "small": 1.5,
            "middling": 0.5,
            **dict.fromkeys((*_MEDIUM, *_LARGE), 0.25),
            "0.25 MP 1:1": 1,
            "1 MP 1:1": 1.5,
        },
    ),
)


def lessons_at(progress: float, stages: tuple[Stage, ...] = STAGES) -> dict[str, float]:
    return next((stage.lessons for stage in stages if progress < stage.until), stages[-1].lessons)
