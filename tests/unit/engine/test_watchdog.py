from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serve.engine.watchdog import SLACK, Watch, Work


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextmanager
def _lasting(watch: Watch, clock: Clock, work: Work, seconds: float) -> Iterator[None]:
    with watch.during(work):
        clock.now += seconds
        yield


def _learnt(clock: Clock, *pieces: tuple[Work, float]) -> Watch:
    watch = Watch(clock)
    with watch.learning():
        for work, seconds in pieces:
            with _lasting(watch, clock, work, seconds):
                pass
    return watch


@pytest.mark.parametrize(
    ("work", "limit_s"),
    [
        pytest.param(Work("step", 1, 1000), 2 * SLACK, id="what was learnt"),
        pytest.param(Work("step", 1, 10), 2 * SLACK, id="a smaller picture has no less time"),
        pytest.param(Work("step", 4, 1000), 4 * 2 * SLACK, id="more images have more time"),
        pytest.param(Work("step", 1, 3000), 9 * 2 * SLACK, id="a larger picture, by the square"),
        pytest.param(Work("decode", 1, 1000), 5 * SLACK, id="each kind has its own"),
        pytest.param(Work("text"), None, id="what was never learnt has none"),
    ],
)
def test_the_limit_comes_from_the_slowest_piece_learnt(clock: Clock, work: Work, limit_s: float | None) -> None:
    step, decode = Work("step", 1, 1000), Work("decode", 1, 1000)
    watch = _learnt(clock, (step, 0.5), (step, 2.0), (step, 1.0), (decode, 5.0))
    with watch.during(work):
        assert watch.pulse(alive=True).limit_s == limit_s


def test_work_beyond_its_limit_is_unhealthy_while_it_lasts(clock: Clock) -> None:
    work = Work("step", 1, 1000)
    watch = _learnt(clock, (work, 2.0))
    with _lasting(watch, clock, work, 2 * SLACK):
        assert watch.pulse(alive=True).healthy
        clock.now += 1
        pulse = watch.pulse(alive=True)
        assert not pulse.healthy
        assert (pulse.work, pulse.busy_s) == (work, 2 * SLACK + 1)
    assert watch.pulse(alive=True).healthy


def test_slow_work_after_the_warm_up_teaches_nothing(clock: Clock) -> None:
    work = Work("step", 1, 1000)
    watch = _learnt(clock, (work, 2.0))
    with _lasting(watch, clock, work, 1000):
        pass
    with watch.during(work):
        assert watch.pulse(alive=True).limit_s == 2 * SLACK


def test_waiting_for_work_is_healthy_for_any_time_and_a_dead_thread_never(clock: Clock) -> None:
    watch = _learnt(clock, (Work("step"), 1.0))
    clock.now += 1e6
    assert watch.pulse(alive=True).healthy
    assert not watch.pulse(alive=False).healthy


def test_work_that_fails_is_over(clock: Clock) -> None:
    watch = Watch(clock)
    with pytest.raises(RuntimeError), watch.during(Work("text")):
        raise RuntimeError
    assert watch.pulse(alive=True).work is None
