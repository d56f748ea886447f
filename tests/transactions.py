"""Transactions that last as long as a test wants."""

import threading

from sqlalchemy import Connection, text

POLL_S = 0.02


def wait_in_transaction(connection: Connection, event: threading.Event) -> None:
    """Returns when `event` is set. Transactions on PostgreSQL run on the event loop, which must not be blocked."""
    if connection.dialect.name == "sqlite":
        event.wait()
    while not event.is_set():
        connection.execute(text(f"SELECT pg_sleep({POLL_S})"))
