"""Requests a minute: what is allowed, and when again."""

import pytest

from serve.access.request_rate import check_rate


@pytest.mark.parametrize(
    ("previous", "current", "elapsed_s", "remaining"),
    [(0, 0, 0, 9), (0, 9, 30, 0), (10, 0, 30, 4), (20, 0, 59, 8), (10, 4, 30, 0)],
)
def test_request_within_the_limit_is_allowed(previous: int, current: int, elapsed_s: float, remaining: int) -> None:
    state = check_rate(10, previous, current, elapsed_s)
    assert (state.allowed, state.limit, state.remaining) == (True, 10, remaining)


@pytest.mark.parametrize(
    ("previous", "current", "elapsed_s"), [(0, 10, 0), (0, 10, 59), (20, 0, 15), (10, 5, 20), (10, 0, 0), (40, 0, 1)]
)
def test_request_above_the_limit_is_allowed_after_the_reset(previous: int, current: int, elapsed_s: float) -> None:
    state = check_rate(10, previous, current, elapsed_s)
    assert (state.allowed, state.remaining) == (False, 0)
    at_s = elapsed_s + state.reset_s
    later = check_rate(10, previous, current, at_s) if at_s < 60 else check_rate(10, current, 0, at_s - 60)
    before_s = at_s - 0.5
    before = check_rate(10, previous, current, before_s) if at_s < 60 else check_rate(10, current, 0, before_s - 60)
    assert later.allowed
    assert not before.allowed or before_s < 60 <= at_s


def test_limit_of_one_request_allows_one_in_a_minute() -> None:
    state = check_rate(1, 0, 0, 20)
    assert (state.allowed, state.remaining) == (True, 0)
    assert not check_rate(1, 0, 1, 20).allowed
    assert check_rate(1, 0, 1, 20).reset_s == pytest.approx(100)


def test_reset_is_the_end_of_the_minute_while_requests_remain() -> None:
    assert check_rate(10, 0, 0, 20).reset_s == 40
