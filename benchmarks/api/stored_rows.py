"""Fills the table of predictions with copies of a prediction that the service has run."""

import hashlib
import random
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Connection, make_url, select, text

from serve.database.connection import Database
from serve.database.tables import predictions
from serve.database.times import to_us
from serve.predictions.prediction import Prediction

PERIOD = timedelta(days=29)
"""The copies were created in this time. The service removes records after 30 days."""
DATA_AGE = timedelta(hours=1)
"""Older copies have no data, because the service removes it."""
PLACEHOLDER_ID = "the-id"
PLACEHOLDER_TIME = datetime(2000, 1, 1, microsecond=1, tzinfo=UTC)
PLACEHOLDER_TEXT = "2000-01-01T00:00:00.000001Z"
COPY_TIMEOUT_S = 600.0
SQLITE_CACHE_KB = 200_000

Row = Mapping[str, Any]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """The key of a copy."""

    id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredPredictions:
    """The keys of all copies, the oldest first. The newest was created just before `until`."""

    count: int
    until: datetime

    def __iter__(self) -> Iterator[StoredPrediction]:
        return map(self._at, range(self.count))

    def choose(self, generator: random.Random) -> StoredPrediction:
        return self._at(generator.randrange(self.count))

    def _at(self, number: int) -> StoredPrediction:
        # As long as the ids of the service, and in random order too.
        prediction_id = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=13).hexdigest()
        return StoredPrediction(prediction_id, self.until - PERIOD * ((self.count - number) / self.count))


async def read_row(database_url: str, prediction_id: str) -> Row:
    """The row of a prediction, by column."""

    def work(connection: Connection) -> Row:
        query = select(predictions).where(predictions.c.id == prediction_id)
        return dict(connection.execute(query).one()._mapping)

    return await _read(database_url, work)


async def read_version(database_url: str) -> str:
    """The version of the database."""

    def work(connection: Connection) -> str:
        is_sqlite = connection.dialect.name == "sqlite"
        query = text("SELECT sqlite_version()" if is_sqlite else "SHOW server_version")
        return str(connection.execute(query).scalar_one())

    return await _read(database_url, work)


async def _read(database_url: str, work: Callable[[Connection], Result]) -> Result:
    database = Database(database_url)
    try:
        return await database.read(work)
    finally:
        await database.aclose()


def make_copies(row: Row, stored: StoredPredictions) -> Iterator[tuple[Any, ...]]:
    """The values of copies of `row`, in the order of its columns."""
    times = dict.fromkeys(("created_at", "started_at", "completed_at"), PLACEHOLDER_TIME)
    prediction = Prediction.model_validate_json(row["record"]).model_copy(update={"id": PLACEHOLDER_ID, **times})
    full = dict(row) | {"record": prediction.model_dump_json()}
    reduced = full | {"record": prediction.without_data().model_dump_json(), "data_removed": True, "output_bytes": 0}
    for each in stored:
        yield _copy(full if stored.until - each.created_at < DATA_AGE else reduced, each)


def _copy(row: dict[str, Any], stored: StoredPrediction) -> tuple[Any, ...]:
    # Text is replaced, because pydantic would need a minute for a million records.
    created_us = to_us(stored.created_at)
    created_text = stored.created_at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    record = row["record"].replace(PLACEHOLDER_ID, stored.id).replace(PLACEHOLDER_TEXT, created_text)
    times = dict.fromkeys(("created_us", "started_us", "ended_us"), created_us)
    values = {"id": stored.id, "record": record} | times
    return tuple((row | values).values())


async def insert_rows(database_url: str, columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    """Inserts into the table of predictions in the fastest way that the database has. No other process may use it."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        _insert_into_sqlite(str(url.database), columns, rows)
    else:
        await _copy_to_postgres(database_url, columns, rows)


def _insert_into_sqlite(path: str, columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    connection = sqlite3.connect(path)
    # A journal would write every page twice.
    for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{SQLITE_CACHE_KB}"):
        connection.execute(f"PRAGMA {pragma}")
    places = ", ".join("?" * len(columns))
    with connection:
        connection.executemany(f"INSERT INTO predictions ({', '.join(columns)}) VALUES ({places})", rows)
    connection.close()


async def _copy_to_postgres(database_url: str, columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.copy_records_to_table(
            predictions.name, records=rows, columns=list(columns), timeout=COPY_TIMEOUT_S
        )
        # PostgreSQL would do this a minute later, during the measurement.
        await connection.execute("VACUUM ANALYZE", timeout=COPY_TIMEOUT_S)
    finally:
        await connection.close()
