"""Connects to the database: SQLite on one machine, or PostgreSQL.

SQLite has one writer at a time, so every transaction that writes takes the write lock when it begins.
"""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, NullPool, event, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from serve.errors import DatabaseUnavailable

Result = TypeVar("Result")

MIGRATIONS = Path(__file__).with_name("migrations")
DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
CONNECT_TIMEOUT_S = 3.0
STATEMENT_TIMEOUT_S = 10.0
POOL_TIMEOUT_S = 20.0
"""How long a call waits while others use all connections, which under load happens although the database is there."""
POOL_SIZE = 8
MAX_OVERFLOW = 8
"""Further connections, which are closed after use."""
SQLITE_PRAGMAS = (
    "journal_mode = WAL",
    # A commit is on the disk when it returns, also after a power failure.
    "synchronous = FULL",
    f"busy_timeout = {int(1000 * STATEMENT_TIMEOUT_S)}",
)
MIGRATION_LOCK = 7_305_011
"""Key of the lock that PostgreSQL holds while one process migrates; an arbitrary number."""


class Database:
    """A pool of connections, or a new connection for each use if not `pooled`.

    Every method raises `DatabaseUnavailable` if the database cannot be reached.
    """

    def __init__(self, url: str, pooled: bool = True) -> None:
        self.url = make_url(url)
        self.kind = self.url.get_backend_name()
        if self.kind not in DRIVERS:
            raise ValueError(f"database.url: {self.kind} is not supported; use sqlite or postgresql")
        self._engine = _create_engine(self.url.set(drivername=DRIVERS[self.kind]), pooled)
        self._writing_engine = self._engine.execution_options(writes=True)
        self._write_lock = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    async def migrate(self) -> None:
        """Creates the tables, or changes those of an earlier version."""

        async def work(connection: AsyncConnection) -> None:
            if self.kind == "postgresql":
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            await connection.run_sync(_upgrade)

        await self.write(work)

    async def read(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """The result of `work`, which changes nothing."""
        return await self._finish(self._read(work))

    async def write(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """The result of `work`, which runs in a transaction that is committed if it raises nothing."""
        return await self._finish(self._write(work))

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[AsyncConnection, None]:
        """A connection for as long as the block runs."""
        with _translated_errors():
            async with self._engine.connect() as connection:
                yield connection

    async def aclose(self) -> None:
        """Waits for running transactions and closes all connections."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)
        await self._engine.dispose()

    async def _finish(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs `work` to its end, also if the caller is cancelled: half a transaction would block the connection."""
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _read(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        with _translated_errors():
            async with self._engine.connect() as connection:
                return await work(connection)

    async def _write(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        with _translated_errors():
            if self.kind == "postgresql":
                async with self._engine.begin() as connection:
                    return await work(connection)
            # SQLite's own wait for its lock polls with growing pauses, so writers in one process queue here.
            async with self._write_lock, self._writing_engine.begin() as connection:
                return await work(connection)


def _create_engine(url: URL, pooled: bool) -> AsyncEngine:
    if url.get_backend_name() == "postgresql":
        return create_async_engine(
            url,
            pool_size=POOL_SIZE,
            max_overflow=MAX_OVERFLOW,
            pool_timeout=POOL_TIMEOUT_S,
            pool_pre_ping=True,
            connect_args={"timeout": CONNECT_TIMEOUT_S, "command_timeout": STATEMENT_TIMEOUT_S},
        )
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url, poolclass=None if pooled else NullPool)

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _: object) -> None:
        # The driver's own transactions begin with the first change, too late to take the lock.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in SQLITE_PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


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
