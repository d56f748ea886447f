"""Tells the waiters of this process that a prediction has changed, here or in another process."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from serve.database.connection import Database
from serve.errors import DatabaseUnavailable

CHANNEL = "predictions"
RECONNECT_S = 1.0

log = logging.getLogger(__name__)


class ChangeNotifier:
    """Call `run` in a task of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._has_waiters = asyncio.Event()

    @contextmanager
    def subscription(self, prediction_id: str) -> Iterator[asyncio.Event]:
        """An event that is set by every change of the prediction while the block runs."""
        changed = asyncio.Event()
        waiters = self._waiters.setdefault(prediction_id, set())
        waiters.add(changed)
        self._has_waiters.set()
        try:
            yield changed
        finally:
            waiters.discard(changed)
            if not waiters and self._waiters.get(prediction_id) is waiters:
                del self._waiters[prediction_id]
            if not self._waiters:
                self._has_waiters.clear()

    def notify(self, prediction_id: str) -> None:
        for changed in self._waiters.get(prediction_id, ()):
            changed.set()

    def notify_all(self) -> None:
        for prediction_id in self._waiters:
            self.notify(prediction_id)

    def publish(self, connection: Connection, prediction_id: str) -> None:
        """Tells other processes when the transaction of `connection` is committed."""
        self._database.send(connection, CHANNEL, prediction_id)

    async def run(self) -> None:
        """Follows other processes until it is cancelled, also while the database is away."""
        while True:
            try:
                await self._database.watch(CHANNEL, self.notify, self.notify_all, self._has_waiters)
            except DatabaseUnavailable as error:
                log.warning("changes of other processes are not seen: %s", error.cause)
            await asyncio.sleep(RECONNECT_S)
