"""Fixtures: the fake service, recorded metrics and spans, both databases, and stores of files."""

import uuid
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from benchmarks.api.postgres import PostgresServer, find_binaries, postgres_server
from serve import telemetry
from serve.database.connection import Database
from serve.database.tables import metadata
from serve.launch import subprocess_service
from serve.media.object_store import ObjectStore
from serve.predictions import service as prediction_service
from tests import s3_server
from tests.fake_service import FakeService
from tests.metrics import RecordedMetrics
from tests.spans import Spans, recorded_spans


@pytest.fixture
def fake_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeService:
    """`subprocess_service.local_service` starts this fake instead of the real service."""
    service = FakeService(tmp_path / "service")
    monkeypatch.setattr(subprocess_service, "ROOT", service.folder)
    return service


@pytest.fixture(autouse=True)
def short_wait_for_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_service, "OPEN_TIMEOUT_S", 0.01)


@pytest.fixture
def metrics() -> Iterator[RecordedMetrics]:
    """The metrics that the test records."""
    recorded = RecordedMetrics()
    previous = telemetry.use_backend(recorded)
    yield recorded
    telemetry.use_backend(previous)


@pytest.fixture
def spans() -> Iterator[Spans]:
    """The spans that the test records."""
    with recorded_spans() as recorded:
        yield recorded


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    if find_binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres_server() as server:
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

    def create_tables(connection: Connection) -> None:
        metadata.drop_all(connection)
        metadata.create_all(connection)

    await database.write(create_tables)
    yield database
    await database.aclose()


@pytest.fixture
async def migrated(database: Database) -> AsyncGenerator[Database, None]:
    """An empty database with the tables and the version of the migrations."""

    def drop_tables(connection: Connection) -> None:
        metadata.drop_all(connection)
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))

    await database.write(drop_tables)
    await database.migrate()
    yield database
    await database.write(drop_tables)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The URL of an S3 server with a bucket."""
    command = s3_server.find_server()
    if command is None:
        pytest.skip("moto_server is not installed: pip install 'moto[server]' in an environment on the PATH")
    with s3_server.s3_server(command) as url:
        yield url


@pytest.fixture
def s3_store(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty part of a bucket."""
    for name, value in s3_server.environment(s3_url).items():
        monkeypatch.setenv(name, value)
    return ObjectStore(f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}/part")


@pytest.fixture(params=["folder", "bucket"])
def object_store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store, of each kind."""
    if request.param == "bucket":
        store: ObjectStore = request.getfixturevalue("s3_store")
        return store
    return ObjectStore((tmp_path / "stored").as_uri())
