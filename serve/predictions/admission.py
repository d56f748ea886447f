"""Estimates when a full pool accepts a prediction again. Pure."""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from serve.generation_plan import GenerationPlan

MEGAPIXEL = 1e6
DECODE_STEPS = 3
"""The VAE and the text encoders take about as long as this many steps."""
MIN_RETRY_AFTER_S = 1.0
UNKNOWN_RETRY_AFTER_S = 10.0
"""The minimum until a prediction of the pool has succeeded, while the time that one takes is unknown."""
MAX_RETRY_AFTER_S = 3600.0


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """What a pool has done lately and has still to do. Work is in steps of one megapixel; times are in seconds."""

    finished: Sequence[tuple[float, float, float]]
    """When each of the last predictions that succeeded was started and ended, and its work."""
    active_work: Sequence[float]
    """Of each prediction that takes a place in the pool."""
    oldest_age_s: float
    """Of the oldest of these."""


def work_of(plan: GenerationPlan) -> float:
    """The work of a plan in steps of one megapixel."""
    width, height = plan.size or (1024, 1024)
    steps = plan.steps * (1.0 if plan.strength is None else plan.strength)
    return len(plan.seeds) * (steps + DECODE_STEPS) * width * height / MEGAPIXEL


def seconds_per_place(load: PoolLoad) -> float:
    """The time in which the pool ends one prediction on average.

    It is the work of an average prediction by the pool's speed. Until a prediction has succeeded, the age of the oldest
    one stands for the time of them all: it is long while a pool starts up.
    """
    count = max(1, len(load.active_work))
    busy_s = _busy_s(load.finished)
    if busy_s <= 0:
        return load.oldest_age_s / count
    speed = sum(work for _, _, work in load.finished) / busy_s
    return sum(load.active_work) / count / speed


def own_retry_after_s(load: PoolLoad, own_count: int) -> float:
    """The time in which the pool ends one of a caller's `own_count` predictions on average."""
    share = max(1, len(load.active_work)) / max(1, own_count)
    return _bounded_s(max(1.0, share) * seconds_per_place(load), load)


def _bounded_s(wait_s: float, load: PoolLoad) -> float:
    minimum_s = MIN_RETRY_AFTER_S if load.finished else UNKNOWN_RETRY_AFTER_S
    return float(math.ceil(min(max(wait_s, minimum_s), MAX_RETRY_AFTER_S)))


def _busy_s(finished: Sequence[tuple[float, float, float]]) -> float:
    """The time in which at least one of the predictions was being generated."""
    busy_s, until_s = 0.0, -math.inf
    for started_s, ended_s, _ in sorted(finished):
        busy_s += max(0.0, ended_s - max(started_s, until_s))
        until_s = max(until_s, ended_s)
    return busy_s


class RetryEstimates:
    """Gives each rejected caller a place in an imagined queue, so that not all of them come back for the next place.

    Several threads may use one object.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._promised_s: dict[str, list[float]] = {}
        """By pool, the times at which rejected callers were told to come back."""

    def retry_after_s(self, pool: str, load: PoolLoad) -> float:
        now_s = self._clock().timestamp()
        place_s = seconds_per_place(load)
        with self._lock:
            promised_s = [at_s for at_s in self._promised_s.get(pool, ()) if at_s > now_s]
            wait_s = _bounded_s((len(promised_s) + 1) * place_s, load)
            self._promised_s[pool] = [*promised_s, now_s + wait_s]
        return wait_s
