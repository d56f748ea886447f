"""How many predictions of each pool are accepted and not ended. Knows neither what they are nor who runs them.

The count covers all replicas of a pool, and what still waits for its pictures: a full pool refuses at the door.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from serve.errors import PoolFull

RECENT = 32
RETRY_AFTER_MAX_S = 60.0


class Permit:
    """One place in a pool, given back once however often it is asked; a context manager gives it back at its end."""

    def __init__(self, pool: "_PoolGate") -> None:
        self._pool: _PoolGate | None = pool
        pool.enter(self)

    def release(self) -> None:
        if self._pool is not None:
            self._pool.leave(self)
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Admission:
    def __init__(self, max_in_flight: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._gates = {pool: _PoolGate(limit, clock) for pool, limit in max_in_flight.items()}

    def admit(self, pool: str) -> Permit:
        """A place in `pool`. Raises `PoolFull` with the time after which one should be free."""
        gate = self._gates[pool]
        if gate.full:
            raise PoolFull(pool, gate.next_place_s())
        return Permit(gate)

    def in_flight(self, pool: str) -> int:
        return len(self._gates[pool].entered)

    @property
    def full(self) -> bool:
        """Whether no pool has a place."""
        return all(gate.full for gate in self._gates.values())


class _PoolGate:
    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._recent_stays_s: deque[float] = deque(maxlen=RECENT)
        self.entered: dict[Permit, float] = {}

    @property
    def full(self) -> bool:
        return len(self.entered) >= self._limit

    def enter(self, permit: Permit) -> None:
        self.entered[permit] = self._clock()

    def leave(self, permit: Permit) -> None:
        self._recent_stays_s.append(self._clock() - self.entered.pop(permit))

    def next_place_s(self) -> float:
        """When places are taken for a typical time, one of `limit` falls free every `limit`-th part of it.

        Whole seconds, as the header wants them. Before the first prediction has ended, the stay of the oldest one is
        the best guess: a pool that is starting up is not asked again every second.
        """
        stays_s = self._recent_stays_s or [self._clock() - min(self.entered.values())]
        typical_s = sum(stays_s) / len(stays_s)
        return min(max(1.0, float(math.ceil(typical_s / self._limit))), RETRY_AFTER_MAX_S)
