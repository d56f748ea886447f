"""Connects to the database: SQLite on one machine, or PostgreSQL.

A transaction is a plain function on a SQLAlchemy `Connection`, the same one for both databases.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from serve.database.postgresql import PostgresqlEngine
from serve.database.sqlite import SqliteEngine
from serve.errors import DatabaseUnavailable

Result = TypeVar("Result")
Work = Callable[[Connection], Result]

MIGRATIONS = Path(__file__).with_name("migrations")
ENGINES: dict[str, type[SqliteEngine] | type[PostgresqlEngine]] = {
    "sqlite": SqliteEngine,
    "postgresql": PostgresqlEngine,
}
MIGRATION_LOCK = 7_305_011
"""Key of the lock that PostgreSQL holds while one process migrates; an arbitrary number."""


class Database:
    """Runs transactions. Every method raises `DatabaseUnavailable` if the database cannot be reached."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.kind = self.url.get_backend_name()
        if self.kind not in ENGINES:
            raise ValueError(f"database.url: {self.kind} is not supported; use sqlite or postgresql")
        self._engine = ENGINES[self.kind](self.url)
        self._running: set[asyncio.Task[Any]] = set()

    async def migrate(self) -> None:
        """Creates the tables, or changes those of an earlier version."""

        def work(connection: Connection) -> None:
            if self.kind == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            _upgrade(connection)

        await self.write(work)

    async def read(self, work: Work[Result]) -> Result:
        """The result of `work`, which changes nothing."""
        return await self._finish(self._engine.read(work))

    async def write(self, work: Work[Result]) -> Result:
        """The result of `work`, which runs in a transaction that is committed if it raises nothing."""
        return await self._finish(self._engine.write(work))

    async def watch(
        self, channel: str, on_message: Callable[[str], None], on_any: Callable[[], None], needed: asyncio.Event
    ) -> None:
        """Reports changes by other connections until it is cancelled or the connection is lost.

        Calls `on_message` with each message that was sent to `channel`, or `on_any` if any messages may have been sent.
        While `needed` is not set, changes may be reported later.
        """
        with _translated_errors():
            await self._engine.watch(channel, on_message, on_any, needed)

    def send(self, connection: Connection, channel: str, message: str) -> None:
        """Sends a message to those who `watch` when the transaction of `connection` is committed."""
        self._engine.send(connection, channel, message)

    async def aclose(self) -> None:
        """Waits for running transactions and closes all connections."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)
        await self._engine.aclose()

    async def _finish(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs `work` to its end, also if the caller is cancelled: half a transaction would block the connection."""
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        with _translated_errors():
            return await asyncio.shield(task)


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:  # also for a full disk
        raise DatabaseUnavailable(str(error.orig)) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseUnavailable(str(error.orig)) from error
        raise
    except (OSError, TimeoutError, PoolTimeout) as error:
        raise DatabaseUnavailable(type(error).__name__) from error


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
