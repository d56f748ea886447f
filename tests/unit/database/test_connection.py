"""The database: migrations, transactions, and a server that is away."""

import asyncio
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from benchmarks.api.postgres import PostgresServer
from serve.database import postgresql
from serve.database.connection import Database
from serve.database.tables import metadata
from serve.errors import DatabaseUnavailable
from tests.transactions import wait_in_transaction


def differences(connection: Connection) -> list[object]:
    """What the migrations did not make as `tables` has it."""
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


def drop_all(connection: Connection) -> None:
    metadata.drop_all(connection)
    connection.execute(text("DROP TABLE IF EXISTS alembic_version"))


async def test_migrations_make_the_tables(database: Database) -> None:
    await database.write(drop_all)
    await database.migrate()
    assert await database.read(differences) == []


async def test_migrations_make_the_indexes_with_their_conditions(database: Database) -> None:
    """Alembic does not compare conditions, and SQLite uses an index only for queries that have its condition."""
    expected = await database.read(index_definitions)
    await database.write(drop_all)
    await database.migrate()
    assert await database.read(index_definitions) == expected


def index_definitions(connection: Connection) -> dict[str, str]:
    """The SQL of each index, by name."""
    query = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    }[connection.dialect.name]
    rows = connection.execute(text(query)).all()
    return {name: sql for name, sql in rows if not name.startswith("alembic_version")}


async def test_two_processes_may_migrate_at_once(database: Database) -> None:
    await database.write(drop_all)
    other = Database(database.url.render_as_string(hide_password=False))
    await asyncio.gather(database.migrate(), other.migrate())
    await other.aclose()


async def test_failed_transaction_changes_nothing(database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE changed (x INTEGER)"))
        raise KeyError

    with pytest.raises(KeyError):
        await database.write(work)
    await database.write(work_without_error)


def work_without_error(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE changed (x INTEGER)"))
    connection.execute(text("DROP TABLE changed"))


async def test_transaction_of_a_cancelled_caller_runs_to_its_end(database: Database) -> None:
    started, may_commit = threading.Event(), threading.Event()

    def work(connection: Connection) -> None:
        started.set()
        wait_in_transaction(connection, may_commit)
        connection.execute(text("CREATE TABLE changed (x INTEGER)"))

    caller = asyncio.create_task(database.write(work))
    await asyncio.to_thread(started.wait, 5)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    may_commit.set()
    await database.aclose()
    other = Database(database.url.render_as_string(hide_password=False))
    await other.write(lambda connection: connection.execute(text("DROP TABLE changed")))
    await other.aclose()


async def test_server_that_is_away_is_unavailable_until_it_is_back(postgres: PostgresServer) -> None:
    database = Database(postgres.url)
    assert await database.read(lambda connection: connection.execute(text("SELECT 1")))
    postgres.stop()
    try:
        for call in (database.read, database.write):
            with pytest.raises(DatabaseUnavailable):
                await call(lambda connection: connection.execute(text("SELECT 1")))
    finally:
        postgres.start()
    assert await database.read(lambda connection: connection.execute(text("SELECT 1")))
    await database.aclose()


async def test_call_without_a_free_connection_is_unavailable(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "POOL_TIMEOUT_S", 0.1)
    database = Database(postgres.url)
    may_end, started = threading.Event(), []

    def occupy(connection: Connection) -> None:
        started.append(connection)
        wait_in_transaction(connection, may_end)

    async with asyncio.TaskGroup() as group:
        connections = postgresql.POOL_SIZE + postgresql.MAX_OVERFLOW
        for _ in range(connections):
            group.create_task(database.read(occupy))
        while len(started) < connections:
            await asyncio.sleep(0.01)
        with pytest.raises(DatabaseUnavailable):
            await database.read(lambda connection: connection.execute(text("SELECT 1")))
        may_end.set()
    await database.aclose()


def test_unknown_databases_are_rejected() -> None:
    with pytest.raises(ValueError, match="mysql"):
        Database("mysql://localhost/flux")
