"""The record of a prediction that this process runs: changed in memory at once, and stored soon after.

While predictions run, their records change with every step. Storing all of them together every `STORE_PERIOD_S` keeps
the database out of the way; the end of a prediction is stored before anyone sees it.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Connection

from serve.database.connection import Database
from serve.errors import DatabaseUnavailable
from serve.events import Preview
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.lease import Lease
from serve.predictions.lease_rows import write_leased
from serve.predictions.prediction import Prediction
from serve.predictions.prediction_metrics import record_end
from serve.predictions.preview_rows import StoredPreview, write_previews

STORE_PERIOD_S = 1.0
RETRY_S = 0.5

log = logging.getLogger(__name__)


def log_end(prediction: Prediction) -> None:
    reason = "" if prediction.error is None else f": {prediction.error!r}"
    values = prediction.log_id, prediction.status, prediction.metrics["total_time"], reason
    log.info("%s: %s after %.1f s%s", *values, extra=prediction.log_fields)
    record_end(prediction)


class LeasedRecord:
    """`on_lost` is called once if the lease turns out to be lost, or the prediction to have been ended elsewhere."""

    def __init__(
        self, writer: "RecordWriter", lease: Lease, prediction: Prediction, on_lost: Callable[[str], None]
    ) -> None:
        self.lease = lease
        self.prediction = prediction
        self._writer = writer
        self._on_lost = on_lost
        self._lock = asyncio.Lock()
        self._is_ending = False
        self._is_lost = False
        self.previews: dict[int, StoredPreview] = {}
        """The newest one of each unfinished image."""
        self.unstored_previews: dict[int, StoredPreview | None] = {}
        """Changes of `previews` that the database does not have yet; None for a preview that is removed."""

    @property
    def is_running(self) -> bool:
        """Whether changes may be stored: the prediction does not end, and the lease is not known to be lost."""
        return not (self._is_ending or self._is_lost)

    def change(self, prediction: Prediction) -> None:
        """Replaces the record, which has not ended, and stores it soon."""
        if prediction is not self.prediction:
            self.prediction = prediction
            self._writer.add(self)

    def add_preview(self, preview: Preview) -> None:
        """Replaces the preview of an image, and stores it soon, with the record. Not after its end."""
        if self.prediction.ended:
            return
        stored = StoredPreview(preview.step, preview.content)
        self.previews[preview.index] = self.unstored_previews[preview.index] = stored
        self.change(self.prediction.with_preview(preview.index, preview.step, preview.total))

    def drop_preview(self, image: int) -> None:
        if self.previews.pop(image, None) is not None:
            self.unstored_previews[image] = None
            self.change(self.prediction.without_preview(image))

    def mark_stored(self, previews: Mapping[int, StoredPreview | None]) -> None:
        for image, stored in previews.items():
            if self.unstored_previews.get(image) is stored:
                self.unstored_previews.pop(image, None)

    async def end(self, change: Callable[[Prediction], Prediction], release: bool) -> bool:
        """Stores the end of the prediction, and waits for the database if it is away. False if it has ended before."""
        async with self._lock:
            if self.prediction.ended or self._is_lost:
                return False
            self._is_ending = True
            try:
                ended = change(self.prediction)
                written = await self._writer.write_end(self.lease, ended, release)
            except BaseException:
                self._is_ending = False
                raise
            if not written:
                self.lose()
                return False
            self.prediction = ended
            self.previews.clear()
        self._writer.notify(ended.id)
        log_end(ended)
        return True

    def abandon(self) -> None:
        """Stores nothing any more."""
        self._is_lost = True

    def lose(self) -> None:
        if not self._is_lost:
            self.abandon()
            self._on_lost(self.lease.prediction_id)
            self._writer.notify(self.lease.prediction_id)


class RecordWriter:
    """Stores the records that this process has leased."""

    def __init__(self, database: Database, notifier: ChangeNotifier) -> None:
        self._database = database
        self._notifier = notifier
        self._changed: set[LeasedRecord] = set()
        self._storing: asyncio.Task[None] | None = None

    def notify(self, prediction_id: str) -> None:
        """Wakes the waiters of this process."""
        self._notifier.notify(prediction_id)

    def add(self, record: LeasedRecord) -> None:
        """Wakes the waiters of this process, and stores the record with the next transaction."""
        self._changed.add(record)
        self.notify(record.lease.prediction_id)
        if self._storing is None or self._storing.done():
            loop = asyncio.get_running_loop()
            self._storing = loop.create_task(self._store_changes(), context=contextvars.Context())

    async def write_end(self, lease: Lease, prediction: Prediction, release: bool) -> bool:
        """Writes until the database answers. Returns False if the lease is lost."""
        is_first = True
        while True:
            try:
                return await self._database.write(
                    lambda connection: self._write(connection, lease, prediction, release)
                )
            except DatabaseUnavailable as error:
                if is_first:
                    values = prediction.log_id, error.cause
                    log.warning("%s: its end waits for the database: %s", *values, extra=prediction.log_fields)
                is_first = False
                await asyncio.sleep(RETRY_S)

    async def _store_changes(self) -> None:
        while self._changed:
            await asyncio.sleep(STORE_PERIOD_S)
            changed = [record for record in self._changed if record.is_running]
            self._changed = set()
            try:
                await self._store(changed)
            except DatabaseUnavailable as error:
                log.warning("the progress of %d predictions is stored later: %s", len(changed), error.cause)
                self._changed.update(changed)

    async def _store(self, records: Sequence[LeasedRecord]) -> None:
        states = [(record, record.prediction, dict(record.unstored_previews)) for record in records]

        def work(connection: Connection) -> list[LeasedRecord]:
            lost = []
            for record, prediction, previews in states:
                if not self._write(connection, record.lease, prediction, release=False):
                    lost.append(record)
                elif previews:
                    write_previews(connection, prediction.id, previews)
            return lost

        if states:
            for record in await self._database.write(work):
                if record.is_running:
                    record.lose()
            for record, _, previews in states:
                record.mark_stored(previews)

    def _write(self, connection: Connection, lease: Lease, prediction: Prediction, release: bool) -> bool:
        written = write_leased(connection, lease, prediction, release)
        if written:
            self._notifier.publish(connection, prediction.id)
        return written
