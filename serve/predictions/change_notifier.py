"""Tells the waiters of this process that a prediction has changed, here or in another process.

PostgreSQL sends a notification for each change. For SQLite, a connection asks every `POLL_S` whether another one has
changed the database, as long as somebody waits.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.database.connection import Database
from serve.errors import DatabaseUnavailable

CHANNEL = "predictions"
POLL_S = 0.1
RECONNECT_S = 1.0
KEEP_ALIVE_S = 5.0

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

    async def publish(self, connection: AsyncConnection, prediction_id: str) -> None:
        """Tells other processes when the transaction of `connection` is committed."""
        if self._database.kind == "postgresql":
            await connection.execute(text("SELECT pg_notify(:channel, :id)"), {"channel": CHANNEL, "id": prediction_id})

    async def run(self) -> None:
        """Listens until it is cancelled, also while the database is away."""
        listen = self._listen if self._database.kind == "postgresql" else self._poll
        while True:
            try:
                await listen()
            except DatabaseUnavailable as error:
                log.warning("changes of other processes are not seen: %s", error.cause)
            await asyncio.sleep(RECONNECT_S)

    async def _listen(self) -> None:
        async with self._database.connection() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            assert raw is not None
            await raw.add_listener(CHANNEL, lambda *message: self.notify(message[-1]))
            # Changes before this connection were missed.
            self.notify_all()
            try:
                while True:
                    await asyncio.sleep(KEEP_ALIVE_S)
                    await raw.execute("SELECT 1")
            finally:
                # The connection must not go back to the pool with its listener.
                raw.terminate()

    async def _poll(self) -> None:
        async with self._database.connection() as connection:
            version = None
            while True:
                await self._has_waiters.wait()
                before, version = version, (await connection.execute(text("PRAGMA data_version"))).scalar_one()
                await connection.rollback()
                if version != before:
                    self.notify_all()
                await asyncio.sleep(POLL_S)
