"""Admission control: limits of pools and the retry time of full pools."""

import pytest

from serve.errors import PoolFull
from serve.predictions.admission import AdmissionControl, Permit
from tests.fakes import FakeClock


def admit(admission: AdmissionControl, pool: str, count: int) -> list[Permit]:
    return [admission.admit(pool) for _ in range(count)]


def test_full_pool_does_not_affect_other_pools() -> None:
    admission = AdmissionControl({"small": 2, "large": 9})
    admit(admission, "small", 2)
    with pytest.raises(PoolFull) as caught:
        admission.admit("small")
    assert caught.value.pool == "small"
    assert not admission.full
    admit(admission, "large", 9)
    assert admission.full


def test_releasing_a_permit_twice_frees_it_once() -> None:
    admission = AdmissionControl({"pool": 2})
    first, _ = admit(admission, "pool", 2)
    first.release()
    first.release()
    admission.admit("pool")
    with pytest.raises(PoolFull):
        admission.admit("pool")


@pytest.mark.parametrize(
    ("limit", "durations_s", "retry_after_s"),
    [
        (4, [20.0, 20.0], 5.0),
        (4, [10.0, 12.0], 3.0),
        (64, [2.0], 1.0),
        (1, [500.0], 60.0),
    ],
)
def test_retry_after_is_the_mean_duration_divided_by_the_limit(
    limit: int, durations_s: list[float], retry_after_s: float
) -> None:
    clock = FakeClock()
    admission = AdmissionControl({"pool": limit}, clock)
    for duration_s in durations_s:
        permit = admission.admit("pool")
        clock.elapsed_s += duration_s
        permit.release()
    admit(admission, "pool", limit)
    with pytest.raises(PoolFull) as caught:
        admission.admit("pool")
    assert caught.value.retry_after_s == retry_after_s


def test_retry_after_uses_the_age_of_the_oldest_prediction_until_one_has_ended() -> None:
    clock = FakeClock()
    admission = AdmissionControl({"pool": 2}, clock)
    admit(admission, "pool", 2)
    clock.elapsed_s = 30
    with pytest.raises(PoolFull) as caught:
        admission.admit("pool")
    assert caught.value.retry_after_s == 15


def test_retry_after_ignores_all_but_the_32_most_recent_durations() -> None:
    clock = FakeClock()
    admission = AdmissionControl({"pool": 1}, clock)
    for duration_s in [50.0] + [4.0] * 32:
        permit = admission.admit("pool")
        clock.elapsed_s += duration_s
        permit.release()
    admission.admit("pool")
    with pytest.raises(PoolFull) as caught:
        admission.admit("pool")
    assert caught.value.retry_after_s == 4
