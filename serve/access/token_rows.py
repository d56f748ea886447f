"""The SQL statements on the tables of tokens and of their requests. Each function runs in the caller's transaction."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from serve.access.token import Token
from serve.database.tables import request_counts, tokens
from serve.database.times import from_us, to_us
from serve.database.upsert import insert_into

Counts = Mapping[tuple[str, int], int]
"""Numbers of requests by the id of the token and the minute since 1970."""


def insert_token(connection: Connection, token: Token) -> None:
    values = {
        "id": token.id,
        "digest": token.digest,
        "name": token.name,
        "scope": token.scope,
        "requests_per_minute": token.requests_per_minute,
        "max_in_flight": token.max_in_flight,
        "created_us": to_us(token.created_at),
    }
    connection.execute(insert(tokens).values(values))


def read_token(connection: Connection, token_id: str) -> Token | None:
    row = connection.execute(select(tokens).where(tokens.c.id == token_id)).one_or_none()
    return None if row is None else _token(row)


def read_tokens(connection: Connection) -> list[Token]:
    """All tokens, also revoked ones, the oldest first."""
    query = select(tokens).order_by(tokens.c.created_us, tokens.c.id)
    return [_token(row) for row in connection.execute(query)]


def revoke_token(connection: Connection, token_id: str, at: datetime) -> bool:
    """Returns False if there is no such token, or it was revoked before."""
    is_valid = tokens.c.revoked_us.is_(None)
    statement = update(tokens).where(tokens.c.id == token_id, is_valid).values(revoked_us=to_us(at))
    return connection.execute(statement).rowcount == 1


def add_requests(connection: Connection, counts: Counts) -> None:
    """Adds to the numbers of requests."""
    statement = insert_into(connection, request_counts)
    statement = statement.on_conflict_do_update(
        index_elements=[request_counts.c.token_id, request_counts.c.minute],
        set_={"requests": request_counts.c.requests + statement.excluded.requests},
    )
    # In one order, because processes that lock rows in different orders would wait for each other.
    rows = [
        {"token_id": token_id, "minute": minute, "requests": number}
        for (token_id, minute), number in sorted(counts.items())
    ]
    if rows:
        connection.execute(statement, rows)


def read_requests(connection: Connection, token_ids: Collection[str], from_minute: int) -> Counts:
    query = select(request_counts).where(
        request_counts.c.token_id.in_(token_ids), request_counts.c.minute >= from_minute
    )
    return {(row.token_id, row.minute): row.requests for row in connection.execute(query)}


def delete_requests(connection: Connection, before_minute: int) -> None:
    connection.execute(delete(request_counts).where(request_counts.c.minute < before_minute))


def _token(row: Row[Any]) -> Token:
    revoked_at = None if row.revoked_us is None else from_us(row.revoked_us)
    return Token(
        row.id,
        row.digest,
        row.name,
        row.scope,
        row.requests_per_minute,
        row.max_in_flight,
        from_us(row.created_us),
        revoked_at,
    )
