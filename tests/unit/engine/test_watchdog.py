"""Time limits for engine work, and health."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serve.engine.watchdog import LIMIT_FACTOR, Watchdog, WorkItem
from tests.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@contextmanager
def _track(watchdog: Watchdog, clock: FakeClock, work: WorkItem, seconds: float) -> Iterator[None]:
    """Tracks work that has already taken `seconds` when the block starts."""
    with watchdog.track(work):
        clock.elapsed_s += seconds
        yield


def _warmed_up(clock: FakeClock, *measurements: tuple[WorkItem, float]) -> Watchdog:
    watchdog = Watchdog(clock)
    with watchdog.measure():
        for work, seconds in measurements:
            with _track(watchdog, clock, work, seconds):
                pass
    return watchdog


@pytest.mark.parametrize(
    ("work", "limit_s"),
    [
        pytest.param(WorkItem("step", 1, 1000), 2 * LIMIT_FACTOR, id="as measured"),
        pytest.param(WorkItem("step", 1, 10), 2 * LIMIT_FACTOR, id="a smaller image has the same limit"),
        pytest.param(WorkItem("step", 4, 1000), 4 * 2 * LIMIT_FACTOR, id="linear in the number of images"),
        pytest.param(WorkItem("step", 1, 3000), 9 * 2 * LIMIT_FACTOR, id="quadratic in the pixels"),
        pytest.param(WorkItem("decode", 1, 1000), 5 * LIMIT_FACTOR, id="each kind has its own limit"),
        pytest.param(WorkItem("text"), None, id="no limit without a measurement"),
    ],
)
def test_limit_is_derived_from_the_slowest_measurement(clock: FakeClock, work: WorkItem, limit_s: float | None) -> None:
    step, decode = WorkItem("step", 1, 1000), WorkItem("decode", 1, 1000)
    watchdog = _warmed_up(clock, (step, 0.5), (step, 2.0), (step, 1.0), (decode, 5.0))
    with watchdog.track(work):
        assert watchdog.health(alive=True).limit_s == limit_s


def test_work_beyond_its_limit_is_unhealthy_until_it_ends(clock: FakeClock) -> None:
    work = WorkItem("step", 1, 1000)
    watchdog = _warmed_up(clock, (work, 2.0))
    with _track(watchdog, clock, work, 2 * LIMIT_FACTOR):
        assert watchdog.health(alive=True).healthy
        clock.elapsed_s += 1
        health = watchdog.health(alive=True)
        assert not health.healthy
        assert (health.work, health.busy_s) == (work, 2 * LIMIT_FACTOR + 1)
    assert watchdog.health(alive=True).healthy


def test_work_after_warm_up_does_not_change_the_limits(clock: FakeClock) -> None:
    work = WorkItem("step", 1, 1000)
    watchdog = _warmed_up(clock, (work, 2.0))
    with _track(watchdog, clock, work, 1000):
        pass
    with watchdog.track(work):
        assert watchdog.health(alive=True).limit_s == 2 * LIMIT_FACTOR


def test_idle_thread_is_healthy_and_dead_thread_is_not(clock: FakeClock) -> None:
    watchdog = _warmed_up(clock, (WorkItem("step"), 1.0))
    clock.elapsed_s += 1e6
    assert watchdog.health(alive=True).healthy
    assert not watchdog.health(alive=False).healthy


def test_failed_work_is_no_longer_tracked(clock: FakeClock) -> None:
    watchdog = Watchdog(clock)
    with pytest.raises(RuntimeError), watchdog.track(WorkItem("text")):
        raise RuntimeError
    assert watchdog.health(alive=True).work is None
