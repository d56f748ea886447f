"""Reads the load of all pools from the database, for metrics."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, case, func, select

from serve import telemetry
from serve.database.connection import Database
from serve.database.tables import is_active, predictions
from serve.database.times import to_us
from serve.errors import DatabaseUnavailable
from serve.predictions import prediction_rows as rows
from serve.predictions.admission import seconds_per_place
from serve.predictions.prediction import utc_now

PERIOD_S = 10.0
"""Ray exports as often."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolState:
    """The unfinished predictions of a pool at one moment."""

    waiting: int = 0
    """Without a first step."""
    running: int = 0
    oldest_waiting_s: float = 0.0
    outstanding_s: float = 0.0
    """The time in which the pool does their work, at its recent speed."""


class PoolMetrics:
    """`limits` has the number of predictions that each pool accepts at once."""

    def __init__(self, database: Database, limits: Mapping[str, int], clock: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._limits = limits
        self._clock = clock

    async def run(self) -> None:
        """Calls `update` until cancelled."""
        while True:
            try:
                await self.update()
            except DatabaseUnavailable:
                pass  # Other tasks log it.
            except Exception:
                log.exception("the load of the pools is not measured")
            await asyncio.sleep(PERIOD_S)

    async def update(self) -> None:
        """Records the load of each pool. Raises `DatabaseUnavailable`."""
        now_us = to_us(self._clock())
        states = await self._database.read(lambda connection: read_states(connection, self._limits, now_us))
        for pool, state in states.items():
            telemetry.POOL_LIMIT.set(self._limits[pool], pool=pool)
            telemetry.POOL_PREDICTIONS.set(state.waiting, pool=pool, status="waiting")
            telemetry.POOL_PREDICTIONS.set(state.running, pool=pool, status="running")
            telemetry.OLDEST_WAITING_SECONDS.set(state.oldest_waiting_s, pool=pool)
            telemetry.OUTSTANDING_SECONDS.set(state.outstanding_s, pool=pool)


def read_states(connection: Connection, pools: Iterable[str], now_us: int) -> dict[str, PoolState]:
    is_waiting = predictions.c.status == "starting"
    query = (
        select(
            predictions.c.pool,
            func.count().label("unfinished"),
            func.coalesce(func.sum(case((is_waiting, 1), else_=0)), 0).label("waiting"),
            func.min(case((is_waiting, predictions.c.created_us))).label("oldest_us"),
        )
        .where(is_active)
        .group_by(predictions.c.pool)
    )
    counts = {row.pool: row for row in connection.execute(query)}
    states = dict.fromkeys(pools, PoolState())
    for pool in states.keys() & counts.keys():
        row, load = counts[pool], rows.read_load(connection, pool, now_us)
        states[pool] = PoolState(
            waiting=int(row.waiting),
            running=row.unfinished - int(row.waiting),
            oldest_waiting_s=0.0 if row.oldest_us is None else (now_us - row.oldest_us) / rows.SECOND_US,
            outstanding_s=len(load.active_work) * seconds_per_place(load),
        )
    return states
