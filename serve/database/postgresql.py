"""Runs transactions on PostgreSQL, by asyncpg."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import URL, Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

Result = TypeVar("Result")

CONNECT_TIMEOUT_S = 3.0
STATEMENT_TIMEOUT_S = 10.0
POOL_TIMEOUT_S = 20.0
"""How long a call waits while others use all connections, which under load happens although the database is there."""
POOL_SIZE = 8
MAX_OVERFLOW = 8
"""Further connections, which are closed after use."""
KEEP_ALIVE_S = 5.0
SEND = text("SELECT pg_notify(:channel, :message)")


class PostgresqlEngine:
    def __init__(self, url: URL) -> None:
        self._engine = create_async_engine(
            url.set(drivername="postgresql+asyncpg"),
            pool_size=POOL_SIZE,
            max_overflow=MAX_OVERFLOW,
            pool_timeout=POOL_TIMEOUT_S,
            pool_pre_ping=True,
            connect_args={"timeout": CONNECT_TIMEOUT_S, "command_timeout": STATEMENT_TIMEOUT_S},
        )

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        async with self._engine.connect() as connection:
            return await connection.run_sync(work)

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def watch(
        self, channel: str, on_message: Callable[[str], None], on_any: Callable[[], None], needed: asyncio.Event
    ) -> None:
        """Listens on a connection of its own."""
        async with self._engine.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            assert raw is not None
            await raw.add_listener(channel, lambda *message: on_message(message[-1]))
            # Messages before this connection were missed.
            on_any()
            try:
                while True:
                    await asyncio.sleep(KEEP_ALIVE_S)
                    await raw.execute("SELECT 1")
            finally:
                # The connection must not go back to the pool with its listener.
                raw.terminate()

    def send(self, connection: Connection, channel: str, message: str) -> None:
        connection.execute(SEND, {"channel": channel, "message": message})

    async def aclose(self) -> None:
        await self._engine.dispose()
