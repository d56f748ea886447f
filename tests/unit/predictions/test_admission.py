"""Places in a pool."""

import pytest

from serve.errors import PoolFull
from serve.predictions.admission import AdmissionControl, Permit
from tests.fakes import FakeClock


def admitted(admission: AdmissionControl, pool: str, count: int) -> list[Permit]:
    return [admission.admit(pool) for _ in range(count)]


def test_a_full_pool_refuses_and_another_does_not() -> None:
    admission = AdmissionControl({"small": 2, "large": 9})
    admitted(admission, "small", 2)
    with pytest.raises(PoolFull, match="'small' is full"):
        admission.admit("small")
    admitted(admission, "large", 9)
    assert admission.full


def test_a_place_is_given_back_exactly_once() -> None:
    admission = AdmissionControl({"pool": 2})
    first, _ = admitted(admission, "pool", 2)
    first.release()
    first.release()
    admission.admit("pool")
    with pytest.raises(PoolFull):
        admission.admit("pool")


@pytest.mark.parametrize(
    ("limit", "stays_s", "retry_after_s"),
    [
        (4, [20.0, 20.0], 5.0),
        (4, [10.0, 12.0], 3.0),
        (64, [2.0], 1.0),
        (1, [500.0], 60.0),
    ],
)
def test_retry_after_is_when_a_place_should_fall_free(limit: int, stays_s: list[float], retry_after_s: float) -> None:
    clock = FakeClock()
    admission = AdmissionControl({"pool": limit}, clock)
    for stay_s in stays_s:
        permit = admission.admit("pool")
        clock.elapsed_s += stay_s
        permit.release()
    admitted(admission, "pool", limit)
    with pytest.raises(PoolFull) as refused:
        admission.admit("pool")
    assert refused.value.retry_after_s == retry_after_s


def test_before_any_has_ended_the_oldest_stay_is_the_measure() -> None:
    clock = FakeClock()
    admission = AdmissionControl({"pool": 2}, clock)
    admitted(admission, "pool", 2)
    clock.elapsed_s = 30
    with pytest.raises(PoolFull) as refused:
        admission.admit("pool")
    assert refused.value.retry_after_s == 15


def test_only_recent_stays_count() -> None:
    clock = FakeClock()
    admission = AdmissionControl({"pool": 1}, clock)
    for stay_s in [50.0] + [4.0] * 32:
        permit = admission.admit("pool")
        clock.elapsed_s += stay_s
        permit.release()
    admission.admit("pool")
    with pytest.raises(PoolFull) as refused:
        admission.admit("pool")
    assert refused.value.retry_after_s == 4
