"""The secrets that sign webhooks, in the database. All processes and callers share them."""

from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import delete, func, insert, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.database.connection import Database
from serve.database.tables import webhook_secrets
from serve.database.times import to_us
from serve.predictions.prediction import utc_now
from serve.webhooks.signatures import new_secret


class SigningSecrets:
    """The first secret is made when it is needed. Methods raise `DatabaseUnavailable`."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def valid(self) -> tuple[str, ...]:
        """The secrets that sign now, the newest first."""
        found = await self._database.read(self._read)
        return found or await self._database.write(self._create_first)

    async def rotate(self, overlap: timedelta) -> str:
        """Makes a new secret and returns it. The one before signs too, until `overlap` has passed."""

        async def work(connection: AsyncConnection) -> str:
            await _lock(connection)
            # At most two are valid at once.
            await connection.execute(delete(webhook_secrets).where(webhook_secrets.c.expires_us.is_not(None)))
            await connection.execute(update(webhook_secrets).values(expires_us=to_us(self._clock() + overlap)))
            return await self._insert(connection)

        return await self._database.write(work)

    async def _create_first(self, connection: AsyncConnection) -> tuple[str, ...]:
        await _lock(connection)
        # Another process may have made one in the meantime.
        return await self._read(connection) or (await self._insert(connection),)

    async def _read(self, connection: AsyncConnection) -> tuple[str, ...]:
        expires_us = webhook_secrets.c.expires_us
        is_valid = or_(expires_us.is_(None), expires_us > to_us(self._clock()))
        query = select(webhook_secrets.c.secret).where(is_valid).order_by(webhook_secrets.c.number.desc())
        return tuple((await connection.execute(query)).scalars())

    async def _insert(self, connection: AsyncConnection) -> str:
        last = (await connection.execute(select(func.max(webhook_secrets.c.number)))).scalar_one()
        secret = new_secret()
        await connection.execute(
            insert(webhook_secrets).values(number=(last or 0) + 1, secret=secret, created_us=to_us(self._clock()))
        )
        return secret


async def _lock(connection: AsyncConnection) -> None:
    """Makes other changes of the secrets wait for the end of the transaction. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(literal("webhook secrets")))))
