"""Keys that all processes share."""

import asyncio

from serve.database.connection import Database
from serve.database.signing_keys import KEY_BYTES, signing_key


async def test_all_processes_have_the_same_key(database: Database) -> None:
    other = Database(database.url.render_as_string(hide_password=False))
    keys = await asyncio.gather(*(signing_key(each, "links") for each in (database, other) * 4))
    assert len(set(keys)) == 1
    assert len(keys[0]) == KEY_BYTES
    assert await signing_key(other, "links") == keys[0]
    assert await signing_key(other, "other") != keys[0]
    await other.aclose()
