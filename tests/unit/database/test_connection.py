"""The database: migrations, transactions, and a server that is away."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks.api.postgres import PostgresServer
from serve.database import connection
from serve.database.connection import Database
from serve.database.tables import metadata
from serve.errors import DatabaseUnavailable


def differences(connection: Connection) -> list[object]:
    """What the migrations did not make as `tables` has it."""
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


async def drop_all(connection: AsyncConnection) -> None:
    await connection.run_sync(metadata.drop_all)
    await connection.execute(text("DROP TABLE IF EXISTS alembic_version"))


async def test_migrations_make_the_tables(database: Database) -> None:
    await database.write(drop_all)
    await database.migrate()
    assert await database.read(lambda connection: connection.run_sync(differences)) == []


async def test_migrations_make_the_indexes_with_their_conditions(database: Database) -> None:
    """Alembic does not compare conditions, and SQLite uses an index only for queries that have its condition."""
    expected = await database.read(index_definitions)
    await database.write(drop_all)
    await database.migrate()
    assert await database.read(index_definitions) == expected


async def index_definitions(connection: AsyncConnection) -> dict[str, str]:
    """The SQL of each index, by name."""
    query = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    }[connection.dialect.name]
    rows = (await connection.execute(text(query))).all()
    return {name: sql for name, sql in rows if not name.startswith("alembic_version")}


async def test_two_processes_may_migrate_at_once(database: Database) -> None:
    await database.write(drop_all)
    other = Database(database.url.render_as_string(hide_password=False))
    await asyncio.gather(database.migrate(), other.migrate())
    await other.aclose()


async def test_failed_transaction_changes_nothing(database: Database) -> None:
    async def work(connection: AsyncConnection) -> None:
        await connection.execute(text("CREATE TABLE changed (x INTEGER)"))
        raise KeyError

    with pytest.raises(KeyError):
        await database.write(work)
    await database.write(work_without_error)


async def work_without_error(connection: AsyncConnection) -> None:
    await connection.execute(text("CREATE TABLE changed (x INTEGER)"))
    await connection.execute(text("DROP TABLE changed"))


async def test_transaction_of_a_cancelled_caller_runs_to_its_end(database: Database) -> None:
    started, done = asyncio.Event(), asyncio.Event()

    async def work(connection: AsyncConnection) -> None:
        started.set()
        await connection.execute(text("SELECT 1"))
        done.set()

    caller = asyncio.create_task(database.write(work))
    await started.wait()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await asyncio.wait_for(done.wait(), 5)
    await database.write(work_without_error)


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
    monkeypatch.setattr(connection, "POOL_TIMEOUT_S", 0.1)
    database = Database(postgres.url)
    async with AsyncExitStack() as stack:
        for _ in range(connection.POOL_SIZE + connection.MAX_OVERFLOW):
            await stack.enter_async_context(database.connection())
        with pytest.raises(DatabaseUnavailable):
            await database.read(lambda connection: connection.execute(text("SELECT 1")))
    await database.aclose()


def test_unknown_databases_are_rejected() -> None:
    with pytest.raises(ValueError, match="mysql"):
        Database("mysql://localhost/flux")
