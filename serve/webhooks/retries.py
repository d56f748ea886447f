"""When the last event of a prediction is sent again."""

from collections.abc import Callable

FIRST_DELAY_S = 1.0
MAX_DELAY_S = 300.0
MAX_ATTEMPTS = 20
"""The pauses between them add up to 59 minutes at most."""
MIN_FACTOR = 0.5


def retry_delay_s(attempts: int, uniform: Callable[[float, float], float]) -> float | None:
    """The pause after this many failed attempts, or None after the last one.

    It doubles with each attempt, and up to half of it is cut at random, so that the webhooks that have failed together
    do not come back together. Attempts are counted instead of time, so that a service that is stopped loses none.
    """
    if attempts >= MAX_ATTEMPTS:
        return None
    return uniform(MIN_FACTOR, 1.0) * min(FIRST_DELAY_S * 2.0 ** (attempts - 1), MAX_DELAY_S)
