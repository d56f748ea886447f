"""Stored tokens and counts of requests, with SQLite and PostgreSQL."""

from dataclasses import replace
from functools import partial

import pytest

from serve.access.token import Token, new_token
from serve.access.token_rows import (
    Counts,
    add_requests,
    delete_requests,
    insert_token,
    read_requests,
    read_token,
    read_tokens,
    revoke_token,
)
from serve.database.connection import Database
from tests.fakes import NOON


@pytest.fixture
async def token(database: Database) -> Token:
    token, _ = new_token("studio", "run", 60, None, NOON)
    await database.write(lambda connection: insert_token(connection, token))
    return token


async def test_token_is_read_as_it_was_stored(database: Database, token: Token) -> None:
    assert await database.read(lambda connection: read_token(connection, token.id)) == token
    assert await database.read(lambda connection: read_token(connection, "0" * 16)) is None
    assert await database.read(read_tokens) == [token]


async def test_token_is_revoked_once(database: Database, token: Token) -> None:
    assert await database.write(lambda connection: revoke_token(connection, token.id, NOON))
    assert not await database.write(lambda connection: revoke_token(connection, token.id, NOON))
    assert not await database.write(lambda connection: revoke_token(connection, "0" * 16, NOON))
    assert await database.read(read_tokens) == [replace(token, revoked_at=NOON)]


async def test_requests_are_added_by_token_and_minute(database: Database) -> None:
    added: tuple[Counts, ...] = ({("a", 1): 2, ("b", 1): 1}, {("a", 1): 3, ("a", 2): 4}, {})
    for counts in added:
        await database.write(partial(add_requests, counts=counts))

    async def counts_from(minute: int) -> Counts:
        return await database.read(lambda connection: read_requests(connection, ["a"], minute))

    assert await counts_from(1) == {("a", 1): 5, ("a", 2): 4}
    assert await counts_from(2) == {("a", 2): 4}
    await database.write(lambda connection: delete_requests(connection, 2))
    assert await counts_from(1) == {("a", 2): 4}
