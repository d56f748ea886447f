"""Checks the limits of unfinished predictions, of pools and of callers."""

from collections.abc import Callable, Mapping
from datetime import datetime

from sqlalchemy import Connection

from serve.access.caller import Caller
from serve.database.times import to_us
from serve.errors import PoolFull, TooManyPredictions
from serve.predictions import prediction_rows as rows
from serve.predictions.admission import RetryEstimates, own_retry_after_s


class Capacity:
    """`limits` has the number of predictions that each pool accepts at once."""

    def __init__(self, limits: Mapping[str, int], clock: Callable[[], datetime]) -> None:
        self._limits = limits
        self._clock = clock
        self._estimates = RetryEstimates(clock)

    def lock(self, connection: Connection, pool: str, caller: Caller) -> None:
        """Makes other admissions with the same limits wait for the end of the transaction."""
        if caller.max_in_flight is not None:
            rows.lock_owner(connection, caller.owner)
        rows.lock_pool(connection, pool)

    def check(self, connection: Connection, pool: str, caller: Caller) -> None:
        """Raises `TooManyPredictions` or `PoolFull` if there is no place for one more prediction."""
        if caller.max_in_flight is not None:
            own = rows.count_active_of_owner(connection, caller.owner)
            if own >= caller.max_in_flight:
                load = rows.read_load(connection, pool, to_us(self._clock()))
                raise TooManyPredictions(caller.max_in_flight, own_retry_after_s(load, own))
        if rows.count_active(connection, pool) >= self._limits[pool]:
            load = rows.read_load(connection, pool, to_us(self._clock()))
            raise PoolFull(pool, self._estimates.retry_after_s(pool, load))

    def is_full(self, connection: Connection) -> bool:
        """Whether every pool is full."""
        counts = rows.count_active_by_pool(connection)
        return all(counts.get(pool, 0) >= limit for pool, limit in self._limits.items())
