"""Secret keys that all processes of the service share."""

import secrets

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.database.connection import Database
from serve.database.tables import signing_keys
from serve.database.upsert import insert_into

KEY_BYTES = 32


async def signing_key(database: Database, name: str) -> bytes:
    """The key with this name, which is made at the first call. Raises `DatabaseUnavailable`."""

    async def work(connection: AsyncConnection) -> str:
        values = {"name": name, "key": secrets.token_hex(KEY_BYTES)}
        await connection.execute(insert_into(connection, signing_keys).values(values).on_conflict_do_nothing())
        query = select(signing_keys.c.key).where(signing_keys.c.name == name)
        return str((await connection.execute(query)).scalar_one())

    return bytes.fromhex(await database.write(work))
