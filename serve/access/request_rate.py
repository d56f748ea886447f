"""Decides whether a request is within its token's requests a minute. Pure."""

import math
from dataclasses import dataclass

WINDOW_S = 60.0
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class RateState:
    """The values of the response headers `ratelimit-*`, after the request was counted if it is `allowed`."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: float
    """Until a further request is allowed, if none remains; otherwise until the current minute ends."""


def check_rate(limit: int, previous: int, current: int, elapsed_s: float) -> RateState:
    """Whether one more request is allowed.

    `previous` and `current` are the requests in the last minute of the clock and in the present one, of which
    `elapsed_s` have passed. The requests of the last 60 s are estimated from them: those of the last minute count by
    the part of it that is younger than 60 s.
    """
    estimate = previous * (1 - elapsed_s / WINDOW_S) + current
    allowed = estimate + 1 <= limit + ROUNDING
    remaining = max(0, math.floor(limit - estimate - allowed))
    counted = current + allowed
    reset_s = WINDOW_S - elapsed_s if remaining else _seconds_until_allowed(limit, previous, counted, elapsed_s)
    return RateState(allowed, limit, remaining, reset_s)


def _seconds_until_allowed(limit: int, previous: int, current: int, elapsed_s: float) -> float:
    if current + 1 <= limit and previous:
        return max(0.0, WINDOW_S * (1 - (limit - current - 1) / previous) - elapsed_s)
    into_next_s = WINDOW_S * (1 - (limit - 1) / current) if current else 0.0
    return WINDOW_S - elapsed_s + max(0.0, into_next_s)
