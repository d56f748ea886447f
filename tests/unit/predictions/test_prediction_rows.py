"""The SQL statements on predictions use an index, also those of pages, so that their time does not grow with the table.

SQLite chooses its plans by rules unless it has statistics, so an empty table shows those of a large one.
"""

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from serve.database.connection import Database
from serve.predictions import lease_rows, retention_rows
from serve.predictions import prediction_rows as rows
from serve.predictions.prediction_pages import PageQuery, read_page
from tests.fakes import NOON, prediction
from tests.unit.predictions.helpers import Statement, recorded_statements

Work = Callable[[Connection], object]
PREDICTION = prediction()
OWNED: dict[str, Any] = {"owner": "x"}
TIMES: dict[str, Any] = {"created_after": NOON, "created_before": NOON}


@pytest.fixture
async def migrated(tmp_path: Path) -> AsyncGenerator[Database, None]:
    """An SQLite database with the tables that the service makes."""
    database = Database(f"sqlite:///{tmp_path / 'predictions.db'}")
    await database.migrate()
    yield database
    await database.aclose()


def page(older: bool = False, newer: bool = False, **filters: Any) -> Work:
    cursors = PREDICTION if older else None, PREDICTION if newer else None
    return lambda connection: read_page(connection, PageQuery(101, **filters), *cursors)


@pytest.mark.parametrize(
    ("work", "index"),
    [
        (lambda connection: rows.read_prediction(connection, "x"), "sqlite_autoindex_predictions_1"),
        (page(), "predictions_newest"),
        (page(older=True), "predictions_newest"),
        (page(newer=True), "predictions_newest"),
        (page(**TIMES), "predictions_newest"),
        (page(older=True, **TIMES), "predictions_newest"),
        (page(newer=True, **TIMES), "predictions_newest"),
        (page(**OWNED), "predictions_by_owner"),
        (page(older=True, **OWNED), "predictions_by_owner"),
        (page(newer=True, **OWNED), "predictions_by_owner"),
        (page(**OWNED, **TIMES), "predictions_by_owner"),
        (lambda connection: rows.count_active(connection, "x"), "predictions_active"),
        (rows.count_active_by_pool, "predictions_active"),
        (lambda connection: lease_rows.free_abandoned_places(connection, 0), "predictions_active"),
        (lambda connection: retention_rows.with_old_data(connection, 0, 100), "predictions_with_data"),
        (retention_rows.count_output_bytes, "predictions_with_data"),
        (lambda connection: retention_rows.oldest_with_outputs(connection, 100), "predictions_with_data"),
        (lambda connection: retention_rows.delete_old(connection, 0, 100), "predictions_ended"),
    ],
)
async def test_statement_uses_its_index_and_sorts_nothing(migrated: Database, work: Work, index: str) -> None:
    with recorded_statements() as statements:
        await migrated.read(work)
    (statement,) = statements
    plan = await migrated.read(lambda connection: _explain(connection, statement))
    assert any(f"INDEX {index}" in step for step in plan), plan
    assert not [step for step in plan if "TEMP B-TREE" in step or step == "SCAN predictions"], plan


def _explain(connection: Connection, statement: Statement) -> list[str]:
    sql, parameters = statement
    return [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters)]
