"""What the transformer is taught, in which order: small pictures of one thing first, large ones with words last."""

from dataclasses import dataclass

from training.bank import Grid
from training.drawings.sampling import Mixture

ONE_THING = Mixture(two_things=0, word=0, labelled=0)
SHORT_WORDS = Mixture(two_things=0.25, word=0.25, labelled=0.02, longest_word=4)
ALL = Mixture()


@dataclass(frozen=True, slots=True)
class Lesson:
    """Pictures of one size and kind."""

    name: str
    grid: Grid
    mixture: Mixture
    pictures: int
    """Kept at hand; some are renewed all the time."""
    batch: int


@dataclass(frozen=True, slots=True)
class Stage:
    until: float
    """Progress of the run, 0 to 1, at which the next stage begins."""
    lessons: dict[str, float]
    """Names of lessons and how often each is taken."""


def _shapes(name: str, grids: tuple[Grid, ...], mixture: Mixture, pictures: int, batch: int) -> dict[str, Lesson]:
    return {
        f"{name} {rows}x{columns}": Lesson(f"{name} {rows}x{columns}", (rows, columns), mixture, pictures, batch)
        for rows, columns in grids
    }


LESSONS: dict[str, Lesson] = {
    "one 8x8": Lesson("one 8x8", (8, 8), ONE_THING, 1500, 32),
    "short 8x8": Lesson("short 8x8", (8, 8), SHORT_WORDS, 3000, 32),
    # 512 by 512 and the other shapes of a quarter of a megapixel, then those of one megapixel.
    **_shapes("all", ((16, 16),), ALL, 1200, 12),
    **_shapes("all", ((12, 21), (21, 12), (13, 19), (19, 13), (10, 24), (24, 10), (14, 18), (18, 14)), ALL, 300, 12),
    **_shapes("all", ((32, 32),), ALL, 300, 4),
    **_shapes("all", ((24, 42), (42, 24), (26, 38), (38, 26), (20, 48), (48, 20), (28, 36), (36, 28)), ALL, 80, 4),
}

_MEDIUM = {name: 1.0 for name in LESSONS if name.startswith("all") and LESSONS[name].batch == 12}
_LARGE = {name: 1.0 for name in LESSONS if name.startswith("all") and LESSONS[name].batch == 4}

STAGES = (
    Stage(0.25, {"one 8x8": 1}),
    Stage(0.55, {"one 8x8": 2, "short 8x8": 8}),
    Stage(0.85, {"short 8x8": 10, **_MEDIUM, "all 16x16": 6}),
    Stage(1.0, {"short 8x8": 5, **_MEDIUM, "all 16x16": 5, **_LARGE, "all 32x32": 6}),
)


def lessons_at(progress: float, stages: tuple[Stage, ...] = STAGES) -> dict[str, float]:
    return next((stage.lessons for stage in stages if progress < stage.until), stages[-1].lessons)
