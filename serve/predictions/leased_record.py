"""The record of a prediction that this process runs: changed in memory at once, and stored soon after.

While a prediction runs, its record changes with every step. Storing it at most every `STORE_PERIOD_S` keeps the
database out of the way; the end of a prediction is stored before anyone sees it.
"""

import asyncio
import logging
from collections.abc import Callable

from sqlalchemy.ext.asyncio import AsyncConnection

from serve.database.connection import Database
from serve.errors import DatabaseUnavailable
from serve.predictions import prediction_rows as rows
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.lease import Lease
from serve.predictions.prediction import Prediction

STORE_PERIOD_S = 0.25
RETRY_S = 0.5

log = logging.getLogger(__name__)


def log_end(prediction: Prediction) -> None:
    reason = "" if prediction.error is None else f": {prediction.error!r}"
    log.info("%s: %s after %.1f s%s", prediction.log_id, prediction.status, prediction.metrics["total_time"], reason)


class LeasedRecord:
    """`on_lost` is called once if the lease turns out to be lost, or the prediction to have been ended elsewhere."""

    def __init__(
        self,
        database: Database,
        notifier: ChangeNotifier,
        lease: Lease,
        prediction: Prediction,
        on_lost: Callable[[str], None],
    ) -> None:
        self.lease = lease
        self.prediction = prediction
        self._database = database
        self._notifier = notifier
        self._on_lost = on_lost
        self._stored_revision = prediction.revision
        self._lock = asyncio.Lock()
        self._storing: asyncio.Task[None] | None = None
        self._is_lost = False

    def change(self, prediction: Prediction) -> None:
        """Replaces the record, which has not ended, and stores it soon."""
        if prediction is self.prediction:
            return
        self.prediction = prediction
        self._notifier.notify(prediction.id)
        if self._storing is None or self._storing.done():
            self._storing = asyncio.get_running_loop().create_task(self._store_later())

    async def end(self, change: Callable[[Prediction], Prediction], release: bool) -> bool:
        """Stores the end of the prediction, and waits for the database if it is away. False if it has ended before."""
        async with self._lock:
            if self.prediction.ended or self._is_lost:
                return False
            ended = change(self.prediction)
            if not await self._write_patiently(ended, release):
                self.lose()
                return False
            self.prediction = ended
        self._stop_storing()
        self._notifier.notify(ended.id)
        log_end(ended)
        return True

    def abandon(self) -> None:
        """Stores nothing any more."""
        self._is_lost = True
        self._stop_storing()

    def lose(self) -> None:
        if not self._is_lost:
            self.abandon()
            self._on_lost(self.lease.prediction_id)
            self._notifier.notify(self.lease.prediction_id)

    def _stop_storing(self) -> None:
        if self._storing is not None and self._storing is not asyncio.current_task():
            self._storing.cancel()

    async def _store_later(self) -> None:
        while self.prediction.revision > self._stored_revision:
            await asyncio.sleep(STORE_PERIOD_S)
            async with self._lock:
                if self.prediction.ended or self._is_lost:
                    return
                if not await self._write_patiently(self.prediction, release=False):
                    self.lose()

    async def _write_patiently(self, prediction: Prediction, release: bool) -> bool:
        """Writes until the database answers."""

        async def write(connection: AsyncConnection) -> bool:
            written = await rows.write_leased(connection, self.lease, prediction, release)
            if written:
                await self._notifier.publish(connection, prediction.id)
            return written

        is_first = True
        while True:
            try:
                written = await self._database.write(write)
                self._stored_revision = prediction.revision
                return written
            except DatabaseUnavailable as error:
                if is_first:
                    log.warning("%s: its record waits for the database: %s", prediction.log_id, error.cause)
                is_first = False
                await asyncio.sleep(RETRY_S)
