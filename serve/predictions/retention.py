"""Removes old predictions: first their data, and after a longer time their records, in small batches."""

from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from serve.database.connection import Database
from serve.database.times import to_us
from serve.predictions import prediction_rows as rows
from serve.predictions.prediction import utc_now

BATCH = 200
"""Other writers wait for one batch at most."""


class Retention:
    """`data_max_age_s` and `record_max_age_s` count from the end of a prediction."""

    def __init__(
        self,
        database: Database,
        data_max_age_s: float,
        record_max_age_s: float,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._data_max_age = timedelta(seconds=data_max_age_s)
        self._record_max_age = timedelta(seconds=record_max_age_s)
        self._clock = clock

    async def sweep(self) -> None:
        """Removes what is too old. Raises `DatabaseUnavailable`."""
        now = self._clock()
        while await self._remove_data(to_us(now - self._data_max_age)) == BATCH:
            pass
        while await self._delete(to_us(now - self._record_max_age)) == BATCH:
            pass

    async def _remove_data(self, ended_before_us: int) -> int:
        async def work(connection: AsyncConnection) -> int:
            ids = await rows.ids_with_old_data(connection, ended_before_us, BATCH)
            for prediction_id in ids:
                prediction = await rows.read_prediction(connection, prediction_id)
                if prediction is not None:
                    await rows.remove_data(connection, prediction.without_data())
            return len(ids)

        return await self._database.write(work)

    async def _delete(self, ended_before_us: int) -> int:
        return await self._database.write(lambda connection: rows.delete_old(connection, ended_before_us, BATCH))
