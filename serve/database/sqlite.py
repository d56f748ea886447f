"""Runs transactions on SQLite, in threads.

A whole transaction runs in one thread: SQLAlchemy's asyncio extension changes threads for each statement, which takes
most of the time of a short transaction.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, PoolProxiedConnection, create_engine, event

Result = TypeVar("Result")

READERS = 4
BUSY_TIMEOUT_S = 10.0
WATCH_PERIOD_S = 0.1
PRAGMAS = (
    "journal_mode = WAL",
    # A commit is on the disk when it returns, also after a power failure.
    "synchronous = FULL",
    f"busy_timeout = {int(1000 * BUSY_TIMEOUT_S)}",
)


class SqliteEngine:
    """SQLite has one writer at a time, so one thread runs all transactions that write. Readers do not wait for it."""

    def __init__(self, url: URL) -> None:
        if url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        # One connection for each thread, and one that watches.
        engine = create_engine(url.set(drivername="sqlite+pysqlite"), pool_size=READERS + 2, max_overflow=0)
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
        self._engine = engine
        self._writing_engine = engine.execution_options(writes=True)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="sqlite-reader")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sqlite-writer")

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._write, work)

    async def watch(
        self, channel: str, on_message: Callable[[str], None], on_any: Callable[[], None], needed: asyncio.Event
    ) -> None:
        """Asks every `WATCH_PERIOD_S`, while `needed` is set, whether another connection has changed the database."""
        loop = asyncio.get_running_loop()
        connection = await loop.run_in_executor(self._readers, self._engine.raw_connection)
        try:
            version = None
            while True:
                await needed.wait()
                before, version = version, await loop.run_in_executor(self._readers, _data_version, connection)
                if version != before:
                    on_any()
                await asyncio.sleep(WATCH_PERIOD_S)
        finally:
            connection.close()

    def send(self, connection: Connection, channel: str, message: str) -> None:
        """Nothing to do: others see that the database has changed."""

    async def aclose(self) -> None:
        # In a thread, as the last connection writes the log of changes back into the database.
        await asyncio.get_running_loop().run_in_executor(self._writer, self._engine.dispose)

    def _read(self, work: Callable[[Connection], Result]) -> Result:
        with self._engine.connect() as connection:
            return work(connection)

    def _write(self, work: Callable[[Connection], Result]) -> Result:
        with self._writing_engine.begin() as connection:
            return work(connection)


def _configure(connection: Any, _: object) -> None:
    # The driver's own transactions begin with the first change, too late to take the lock.
    connection.isolation_level = None
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """Takes the write lock at the beginning: SQLite rejects a transaction that takes it after another one's change."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _data_version(connection: PoolProxiedConnection) -> int:
    """Without SQLAlchemy, which takes ten times as long, and outside of a transaction."""
    assert connection.driver_connection is not None
    try:
        (version,) = connection.driver_connection.execute("PRAGMA data_version").fetchone()
    except sqlite3.Error as error:
        raise OSError(str(error)) from error
    return int(version)
