from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serve.engine.watchdog import SLACK, Watchdog, WorkItem


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextmanager
def _lasting(watch: Watchdog, clock: Clock, work: WorkItem, seconds: float) -> Iterator[None]:
    with watch.track(work):
        clock.now += seconds
        yield


def _learnt(clock: Clock, *pieces: tuple[WorkItem, float]) -> Watchdog:
    watch = Watchdog(clock)
    with watch.warm_up():
        for work, seconds in pieces:
            with _lasting(watch, clock, work, seconds):
                pass
    return watch


@pytest.mark.parametrize(
    ("work", "limit_s"),
    [
        pytest.param(WorkItem("step", 1, 1000), 2 * SLACK, id="what was learnt"),
        pytest.param(WorkItem("step", 1, 10), 2 * SLACK, id="a smaller picture has no less time"),
        pytest.param(WorkItem("step", 4, 1000), 4 * 2 * SLACK, id="more images have more time"),
        pytest.param(WorkItem("step", 1, 3000), 9 * 2 * SLACK, id="a larger picture, by the square"),
        pytest.param(WorkItem("decode", 1, 1000), 5 * SLACK, id="each kind has its own"),
        pytest.param(WorkItem("text"), None, id="what was never learnt has none"),
    ],
)
def test_the_limit_comes_from_the_slowest_piece_learnt(clock: Clock, work: WorkItem, limit_s: float | None) -> None:
    step, decode = WorkItem("step", 1, 1000), WorkItem("decode", 1, 1000)
    watch = _learnt(clock, (step, 0.5), (step, 2.0), (step, 1.0), (decode, 5.0))
    with watch.track(work):
        assert watch.health(alive=True).limit_s == limit_s


def test_work_beyond_its_limit_is_unhealthy_while_it_lasts(clock: Clock) -> None:
    work = WorkItem("step", 1, 1000)
    watch = _learnt(clock, (work, 2.0))
    with _lasting(watch, clock, work, 2 * SLACK):
        assert watch.health(alive=True).healthy
        clock.now += 1
        pulse = watch.health(alive=True)
        assert not pulse.healthy
        assert (pulse.work, pulse.busy_s) == (work, 2 * SLACK + 1)
    assert watch.health(alive=True).healthy


def test_slow_work_after_the_warm_up_teaches_nothing(clock: Clock) -> None:
    work = WorkItem("step", 1, 1000)
    watch = _learnt(clock, (work, 2.0))
    with _lasting(watch, clock, work, 1000):
        pass
    with watch.track(work):
        assert watch.health(alive=True).limit_s == 2 * SLACK


def test_waiting_for_work_is_healthy_for_any_time_and_a_dead_thread_never(clock: Clock) -> None:
    watch = _learnt(clock, (WorkItem("step"), 1.0))
    clock.now += 1e6
    assert watch.health(alive=True).healthy
    assert not watch.health(alive=False).healthy


def test_work_that_fails_is_over(clock: Clock) -> None:
    watch = Watchdog(clock)
    with pytest.raises(RuntimeError), watch.track(WorkItem("text")):
        raise RuntimeError
    assert watch.health(alive=True).work is None
