"""Secret keys that all processes of the service share."""

import secrets

from sqlalchemy import Connection, select

from serve.database.connection import Database
from serve.database.tables import signing_keys
from serve.database.upsert import insert_into

KEY_BYTES = 32


async def signing_key(database: Database, name: str) -> bytes:
    """The key with this name, which is made at the first call. Raises `DatabaseUnavailable`."""

    def work(connection: Connection) -> str:
        values = {"name": name, "key": secrets.token_hex(KEY_BYTES)}
        connection.execute(insert_into(connection, signing_keys).values(values).on_conflict_do_nothing())
        query = select(signing_keys.c.key).where(signing_keys.c.name == name)
        return str(connection.execute(query).scalar_one())

    return bytes.fromhex(await database.write(work))
