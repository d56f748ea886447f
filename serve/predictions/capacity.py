"""Checks the limits of unfinished predictions, of pools and of callers."""

from collections.abc import Callable, Mapping
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

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

    async def lock(self, connection: AsyncConnection, pool: str, caller: Caller) -> None:
        """Makes other admissions with the same limits wait for the end of the transaction."""
        if caller.max_in_flight is not None:
            await rows.lock_owner(connection, caller.owner)
        await rows.lock_pool(connection, pool)

    async def check(self, connection: AsyncConnection, pool: str, caller: Caller) -> None:
        """Raises `TooManyPredictions` or `PoolFull` if there is no place for one more prediction."""
        if caller.max_in_flight is not None:
            own = await rows.count_active_of_owner(connection, caller.owner)
            if own >= caller.max_in_flight:
                load = await rows.read_load(connection, pool, to_us(self._clock()))
                raise TooManyPredictions(caller.max_in_flight, own_retry_after_s(load, own))
        if await rows.count_active(connection, pool) >= self._limits[pool]:
            load = await rows.read_load(connection, pool, to_us(self._clock()))
            raise PoolFull(pool, self._estimates.retry_after_s(pool, load))

    async def is_full(self, connection: AsyncConnection) -> bool:
        """Whether every pool is full."""
        counts = await rows.count_active_by_pool(connection)
        return all(counts.get(pool, 0) >= limit for pool, limit in self._limits.items())
