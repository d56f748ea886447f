"""Removes old predictions: first their data, and after a longer time their records, in small batches.

Inputs that belong to no prediction are removed too: a process stores them before the record, and may be killed between.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection

from serve.aio import first_error_task_group
from serve.database.connection import Database
from serve.database.task_lease import TaskLease
from serve.database.times import to_us
from serve.media.output_store import OutputStore
from serve.predictions import retention_rows as rows
from serve.predictions.input_store import InputStore, folder_name
from serve.predictions.prediction import Prediction, utc_now
from serve.settings import Settings

BATCH = 200
"""Other writers wait for one batch at most."""
CONCURRENT_DELETIONS = 8
ORPHAN_AGE = timedelta(hours=1)
"""Inputs that are older belong to no request that is still creating its prediction."""
ORPHAN_PERIOD = timedelta(hours=1)
"""The time between two lists of the stored inputs, which cost requests to a bucket."""


class Retention:
    """Ages count from the end of a prediction. Only the process that has `lease` removes something."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        lease: TaskLease,
        outputs: OutputStore,
        inputs: InputStore,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._lease = lease
        self._outputs = outputs
        self._inputs = inputs
        self._record_max_age = timedelta(seconds=settings.record_max_age_s)
        self._data_max_age = min(timedelta(seconds=settings.outputs.max_age_s), self._record_max_age)
        self._max_bytes = settings.outputs.max_bytes
        self._clock = clock
        self._orphans_due_at = clock()
        self._deletions = asyncio.Semaphore(CONCURRENT_DELETIONS)

    async def sweep(self) -> None:
        """Removes what is too old or too much. Raises `DatabaseUnavailable` and `StorageUnavailable`."""
        now = self._clock()
        data_limit_us, record_limit_us = to_us(now - self._data_max_age), to_us(now - self._record_max_age)
        while await self._lease.take() and await self._remove_old_data(data_limit_us):
            pass
        while await self._lease.take() and await self._free_space():
            pass
        while await self._lease.take() and await self._delete_records(record_limit_us):
            pass
        if now >= self._orphans_due_at and await self._lease.take():
            await self._remove_orphans(now)
            self._orphans_due_at = now + ORPHAN_PERIOD

    async def _remove_orphans(self, now: datetime) -> None:
        names = await self._inputs.folders(now - ORPHAN_AGE)
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            for name in set(batch) - await self._folders_of_predictions(batch):
                await self._inputs.delete_folder(name)

    async def _folders_of_predictions(self, names: Sequence[str]) -> set[str]:
        """Those folders of inputs that belong to a prediction."""
        ids = [name.partition(".")[0] for name in names]
        created_us = await self._database.read(lambda connection: rows.creation_times(connection, ids))
        return {folder_name(prediction_id, created) for prediction_id, created in created_us.items()}

    async def _remove_old_data(self, ended_before_us: int) -> bool:
        """Whether there may be more."""
        old = await self._database.read(lambda connection: rows.with_old_data(connection, ended_before_us, BATCH))
        await self._remove_data(old)
        return len(old) == BATCH

    async def _free_space(self) -> bool:
        """Removes the data of the oldest predictions if their outputs take too much space."""
        excess_bytes = await self._database.read(rows.count_output_bytes) - self._max_bytes
        if excess_bytes <= 0:
            return False
        oldest = await self._database.read(lambda connection: rows.oldest_with_outputs(connection, BATCH))
        removed = []
        for prediction in oldest:
            if excess_bytes <= 0:
                break
            removed.append(prediction)
            excess_bytes -= sum(output.size_bytes for output in prediction.outputs)
        await self._remove_data(removed)
        return bool(removed)

    async def _remove_data(self, removed: Sequence[Prediction]) -> None:
        """The files first: if this process is lost before it has changed the records, another one does both again."""
        async with first_error_task_group() as group:
            for prediction in removed:
                group.create_task(self._delete_files(prediction))

        def change(connection: Connection) -> None:
            for prediction in removed:
                rows.remove_data(connection, prediction.without_data())

        if removed:
            await self._database.write(change)

    async def _delete_files(self, prediction: Prediction) -> None:
        async with self._deletions:
            await self._outputs.delete(prediction.id)
            await self._inputs.delete(prediction)

    async def _delete_records(self, ended_before_us: int) -> bool:
        deleted = await self._database.write(lambda connection: rows.delete_old(connection, ended_before_us, BATCH))
        return deleted == BATCH
