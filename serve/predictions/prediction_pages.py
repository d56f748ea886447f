"""Pages of predictions, the newest first, in SQL."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, literal, select, tuple_

from serve.database.tables import predictions
from serve.database.times import to_us
from serve.predictions.prediction import Prediction


@dataclass(frozen=True, slots=True)
class PageQuery:
    """A page of predictions, the newest first. `older_than` and `newer_than` are ids, which are not in the page."""

    limit: int
    older_than: str | None = None
    newer_than: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    owner: str | None = None
    """None means the predictions of all owners."""


def read_page(
    connection: Connection, query: PageQuery, older_than: Prediction | None, newer_than: Prediction | None
) -> list[Prediction]:
    key = tuple_(predictions.c.created_us, predictions.c.id)
    statement = select(predictions.c.record)
    if query.owner is not None:
        statement = statement.where(predictions.c.owner == query.owner)
    # Of two limits, only the tighter one is a condition: databases may start at the other one and skip rows up to it.
    before, after = query.created_before, query.created_after
    if older_than is not None and (before is None or older_than.created_at < before):
        statement = statement.where(key < _place(older_than))
    elif before is not None:
        statement = statement.where(predictions.c.created_us < to_us(before))
    if newer_than is not None and (after is None or newer_than.created_at >= after):
        statement = statement.where(key > _place(newer_than))
    elif after is not None:
        statement = statement.where(predictions.c.created_us >= to_us(after))
    newest_first = predictions.c.created_us.desc(), predictions.c.id.desc()
    oldest_first = predictions.c.created_us, predictions.c.id
    # The page before a prediction has its nearest neighbours, so it is read backwards.
    backwards = newer_than is not None
    statement = statement.order_by(*(oldest_first if backwards else newest_first)).limit(query.limit)
    found = [Prediction.model_validate_json(record) for record in connection.execute(statement).scalars()]
    return found[::-1] if backwards else found


def _place(prediction: Prediction) -> ColumnElement[Any]:
    """The place of a prediction in the order of the pages."""
    return tuple_(literal(to_us(prediction.created_at)), literal(prediction.id))
