"""Tokens for tests."""

from collections.abc import Mapping

from serve.access.caller import Scope
from serve.access.token import Token, new_token
from serve.access.token_rows import insert_token
from serve.database.connection import Database
from tests.fakes import NOON


async def add_token(
    database: Database,
    scope: Scope = "run",
    requests_per_minute: int | None = None,
    max_in_flight: int | None = None,
) -> tuple[Token, Mapping[str, str]]:
    """A stored token, and the headers of its requests."""
    token, text = new_token("a test", scope, requests_per_minute, max_in_flight, NOON)
    await database.write(lambda connection: insert_token(connection, token))
    return token, {"Authorization": f"Bearer {text}"}
