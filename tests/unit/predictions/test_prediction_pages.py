"""Pages between a cursor and a time have the predictions between both, and one condition for each limit."""

from datetime import timedelta
from itertools import product

import pytest
from sqlalchemy import Connection

from serve.database.connection import Database
from serve.predictions import prediction_rows as rows
from serve.predictions.lease import Lease
from serve.predictions.prediction import Prediction
from serve.predictions.prediction_pages import PageQuery, read_page
from tests.fakes import NOON, prediction
from tests.unit.predictions.helpers import recorded_statements

MINUTE = timedelta(minutes=1)
STORED = [
    prediction(f"{minute}{letter}").model_copy(update={"created_at": NOON + minute * MINUTE})
    for minute, letter in product(range(3), "ab")
]


@pytest.fixture
async def filled(database: Database) -> Database:
    def work(connection: Connection) -> None:
        for each in STORED:
            rows.insert_prediction(connection, each, Lease(each.id, "x", 1), 0, 1.0, attached=False)

    await database.write(work)
    return database


def key(each: Prediction) -> tuple[object, str]:
    return each.created_at, each.id


@pytest.mark.parametrize("minute", [0, 1, 2])
@pytest.mark.parametrize("cursor", STORED[1:5], ids=lambda each: each.id)
async def test_tighter_limit_counts(filled: Database, cursor: Prediction, minute: int) -> None:
    moment = NOON + minute * MINUTE
    older, newer = PageQuery(9, older_than=cursor.id, created_before=moment), PageQuery(9, created_after=moment)
    with recorded_statements() as statements:
        before = await filled.read(lambda connection: read_page(connection, older, cursor, None))
        after = await filled.read(lambda connection: read_page(connection, newer, None, cursor))
    assert before == [each for each in reversed(STORED) if key(each) < key(cursor) and each.created_at < moment]
    assert after == [each for each in reversed(STORED) if key(each) > key(cursor) and each.created_at >= moment]
    assert [sql.count("<") + sql.count(">") for sql, _ in statements] == [1, 1]
