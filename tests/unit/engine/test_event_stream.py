"""Which steps are told on."""

from serve.engine.engine import STEP_EVENT_PERIOD_S, StepThrottle
from serve.events import StepDone


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def told(steps: int, step_s: float, images: int = 1) -> list[tuple[int, int]]:
    """Image and step of what is told, when all images step together."""
    clock = Clock()
    pace = StepThrottle(clock)
    heard = []
    for done in range(1, steps + 1):
        heard += [(image, done) for image in range(images) if pace.should_emit(StepDone(image, done, steps))]
        clock.now_s += step_s
    return heard


def test_slow_steps_are_all_told() -> None:
    assert told(4, step_s=STEP_EVENT_PERIOD_S) == [(0, 1), (0, 2), (0, 3), (0, 4)]


def test_of_fast_steps_the_first_the_last_and_one_an_interval_are_told() -> None:
    assert told(28, step_s=STEP_EVENT_PERIOD_S / 8) == [(0, 1), (0, 9), (0, 17), (0, 25), (0, 28)]


def test_every_image_is_told_of() -> None:
    """The bar of a prediction stands where its slowest image stands."""
    assert told(3, step_s=0, images=4) == [(image, done) for done in (1, 3) for image in range(4)]
