"""The work of plans, and the retry time of full pools."""

import pytest

from serve.predictions.admission import (
    MAX_RETRY_AFTER_S,
    UNKNOWN_RETRY_AFTER_S,
    PoolLoad,
    RetryEstimates,
    own_retry_after_s,
    seconds_per_place,
    work_of,
)
from tests.fakes import FakeClock, plan

HOUR_S = 3600.0


def load(seconds: float = 10.0, places: int = 4) -> PoolLoad:
    """A pool that ends a prediction every `seconds`, one after the other."""
    finished = [(0.0, seconds * number, 1.0) for number in range(1, 9)]
    return PoolLoad(finished, [1.0] * places, oldest_age_s=1.0)


def test_work_grows_with_images_steps_and_pixels() -> None:
    small = work_of(plan())
    assert work_of(plan(images=2)) == 2 * small
    assert work_of(plan(steps=50)) > 5 * small
    large = plan().model_copy(update={"size": (1024, 1024)})
    assert work_of(large) == 4 * small
    assert work_of(large.model_copy(update={"strength": 0.5})) < work_of(large)


def test_one_place_takes_the_work_of_a_prediction_by_the_speed_of_the_pool() -> None:
    assert seconds_per_place(load(seconds=10)) == pytest.approx(10)
    heavy = PoolLoad(load().finished, [3.0, 3.0], oldest_age_s=1.0)
    assert seconds_per_place(heavy) == pytest.approx(30)


def test_idle_time_between_predictions_does_not_count() -> None:
    finished = [(0.0, 10.0, 1.0), (HOUR_S, HOUR_S + 10, 1.0)]
    assert seconds_per_place(PoolLoad(finished, [1.0], oldest_age_s=1.0)) == pytest.approx(10)


def test_parallel_predictions_share_their_time() -> None:
    finished = [(0.0, 10.0, 1.0)] * 4
    assert seconds_per_place(PoolLoad(finished, [1.0], oldest_age_s=1.0)) == pytest.approx(2.5)


def test_age_of_the_oldest_prediction_counts_until_one_has_ended() -> None:
    assert seconds_per_place(PoolLoad([], [1.0] * 4, oldest_age_s=80.0)) == 20


def test_each_rejected_caller_gets_a_later_place() -> None:
    clock = FakeClock()
    estimates = RetryEstimates(clock.now)
    assert [estimates.retry_after_s("pool", load(10)) for _ in range(3)] == [10, 20, 30]
    assert estimates.retry_after_s("other", load(10)) == 10
    clock.elapsed_s = 20
    assert estimates.retry_after_s("pool", load(10)) == 20


def test_own_retry_time_is_that_of_a_place_by_the_callers_share() -> None:
    assert own_retry_after_s(load(10, places=4), own_count=4) == 10
    assert own_retry_after_s(load(10, places=4), own_count=1) == 40
    assert own_retry_after_s(load(10, places=1), own_count=3) == 10
    assert own_retry_after_s(load(0.01), own_count=1) == 1


def test_retry_time_is_not_short_while_the_speed_of_the_pool_is_unknown() -> None:
    unknown = PoolLoad([], [1.0] * 64, oldest_age_s=0.5)
    assert RetryEstimates(FakeClock().now).retry_after_s("pool", unknown) == UNKNOWN_RETRY_AFTER_S
    assert own_retry_after_s(unknown, own_count=64) == UNKNOWN_RETRY_AFTER_S


def test_retry_time_is_a_whole_number_of_seconds_within_bounds() -> None:
    estimates = RetryEstimates(FakeClock().now)
    assert estimates.retry_after_s("fast", load(0.01)) == 1
    assert estimates.retry_after_s("slow", load(1e6)) == MAX_RETRY_AFTER_S
