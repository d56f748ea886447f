"""The secrets that sign webhooks, in the database. Each owner of predictions has one, or two after a rotation."""

from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, func, insert, literal, or_, select, update

from serve.database.connection import Database
from serve.database.tables import webhook_secrets
from serve.database.times import to_us
from serve.predictions.prediction import utc_now
from serve.webhooks.signatures import new_secret


class SigningSecrets:
    """The first secret of an owner is made when it is needed. Methods raise `DatabaseUnavailable`."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def valid(self, owner: str) -> tuple[str, ...]:
        """The secrets that sign now, the newest first."""
        found = await self._database.read(lambda connection: self._read(connection, owner))
        return found or await self._database.write(lambda connection: self._create_first(connection, owner))

    async def rotate(self, owner: str, overlap: timedelta) -> str:
        """Makes a new secret and returns it. The one before signs too, until `overlap` has passed."""

        def work(connection: Connection) -> str:
            _lock(connection, owner)
            is_own, is_replaced = webhook_secrets.c.owner == owner, webhook_secrets.c.expires_us.is_not(None)
            expires_us = to_us(self._clock() + overlap)
            # At most two are valid at once.
            connection.execute(delete(webhook_secrets).where(is_own, is_replaced))
            connection.execute(update(webhook_secrets).where(is_own).values(expires_us=expires_us))
            return self._insert(connection, owner)

        return await self._database.write(work)

    def _create_first(self, connection: Connection, owner: str) -> tuple[str, ...]:
        _lock(connection, owner)
        # Another process may have made one in the meantime.
        return self._read(connection, owner) or (self._insert(connection, owner),)

    def _read(self, connection: Connection, owner: str) -> tuple[str, ...]:
        expires_us = webhook_secrets.c.expires_us
        is_valid = or_(expires_us.is_(None), expires_us > to_us(self._clock()))
        query = select(webhook_secrets.c.secret).where(webhook_secrets.c.owner == owner, is_valid)
        return tuple(connection.execute(query.order_by(webhook_secrets.c.number.desc())).scalars())

    def _insert(self, connection: Connection, owner: str) -> str:
        newest = select(func.max(webhook_secrets.c.number)).where(webhook_secrets.c.owner == owner)
        last = connection.execute(newest).scalar_one()
        secret, created_us = new_secret(), to_us(self._clock())
        values = {"owner": owner, "number": (last or 0) + 1, "secret": secret, "created_us": created_us}
        connection.execute(insert(webhook_secrets).values(values))
        return secret


def _lock(connection: Connection, owner: str) -> None:
    """Makes other changes of the owner's secrets wait for the end of the transaction. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        name = literal(f"webhook secrets {owner}")
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(name))))
