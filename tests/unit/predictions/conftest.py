"""Databases for tests: SQLite, and PostgreSQL where it is installed."""

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.database.connection import Database
from serve.database.tables import metadata
from tests.app_factory import close_apps
from tests.postgres_server import PostgresServer, find_binaries, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres_server(binaries) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'predictions.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database, None]:
    """An empty database with all tables."""
    database = Database(database_url)

    async def create_tables(connection: AsyncConnection) -> None:
        await connection.run_sync(metadata.drop_all)
        await connection.run_sync(metadata.create_all)

    await database.write(create_tables)
    yield database
    await database.aclose()


@pytest.fixture(autouse=True)
async def closed_apps() -> AsyncGenerator[None, None]:
    yield
    await close_apps()
