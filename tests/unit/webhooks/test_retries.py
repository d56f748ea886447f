"""The pauses between attempts to deliver a webhook."""

from itertools import pairwise

from serve.webhooks.retries import MAX_ATTEMPTS, MAX_DELAY_S, retry_delay_s


def delays_s(factor: float) -> list[float]:
    found = [retry_delay_s(attempts, lambda low, high: low + factor * (high - low)) for attempts in range(1, 100)]
    return [delay_s for delay_s in found if delay_s is not None]


def test_attempts_end_within_an_hour() -> None:
    assert len(delays_s(1.0)) == MAX_ATTEMPTS - 1
    assert 3000 < sum(delays_s(1.0)) <= 3600


def test_pauses_grow_up_to_their_limit() -> None:
    assert all(0 < earlier <= later <= MAX_DELAY_S for earlier, later in pairwise(delays_s(1.0)))
    assert delays_s(1.0)[:4] == [1, 2, 4, 8]


def test_up_to_half_of_a_pause_is_cut_at_random() -> None:
    assert [delay_s * 2 for delay_s in delays_s(0.0)] == delays_s(1.0)
