"""Admission control: limits the predictions in flight of each pool and estimates `Retry-After`."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping

from serve.errors import PoolFull

RECENT_PREDICTIONS = 32
"""`Retry-After` averages the durations of this many recently ended predictions."""
RETRY_AFTER_MAX_S = 60.0


class Permit:
    """A permit for one prediction in a pool. Release it when the prediction has ended; twice is harmless."""

    def __init__(self, capacity: "_PoolCapacity") -> None:
        self._capacity: _PoolCapacity | None = capacity
        capacity.take(self)

    def release(self) -> None:
        if self._capacity is not None:
            self._capacity.release(self)
            self._capacity = None


class AdmissionControl:
    """Limits the predictions of each pool that are accepted and not ended, over all its replicas."""

    def __init__(self, max_in_flight: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._pools = {pool: _PoolCapacity(limit, clock) for pool, limit in max_in_flight.items()}

    def admit(self, pool: str) -> Permit:
        """A permit for `pool`. Raises `PoolFull` with an estimate of when the next one is free."""
        capacity = self._pools[pool]
        if capacity.full:
            raise PoolFull(pool, capacity.retry_after_s())
        return Permit(capacity)

    @property
    def full(self) -> bool:
        """Whether every pool is full."""
        return all(capacity.full for capacity in self._pools.values())


class _PoolCapacity:
    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._recent_durations_s: deque[float] = deque(maxlen=RECENT_PREDICTIONS)
        self._admitted_s: dict[Permit, float] = {}

    @property
    def full(self) -> bool:
        return len(self._admitted_s) >= self._limit

    def take(self, permit: Permit) -> None:
        self._admitted_s[permit] = self._clock()

    def release(self, permit: Permit) -> None:
        self._recent_durations_s.append(self._clock() - self._admitted_s.pop(permit))

    def retry_after_s(self) -> float:
        """The mean duration of recent predictions, divided by the limit, in whole seconds.

        Until a prediction has ended, the age of the oldest one is used: it is long while a pool starts up.
        """
        durations_s = self._recent_durations_s or [self._clock() - min(self._admitted_s.values())]
        mean_s = sum(durations_s) / len(durations_s)
        return min(max(1.0, float(math.ceil(mean_s / self._limit))), RETRY_AFTER_MAX_S)
