"""The SQL statements that remove old predictions. Each function runs in the caller's transaction."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Select, and_, delete, func, select, update

from serve.database.tables import has_data, predictions
from serve.predictions.prediction import Prediction
from serve.predictions.prediction_rows import changed_values


def with_old_data(connection: Connection, ended_before_us: int, limit: int) -> list[Prediction]:
    """Up to `limit` predictions that ended before, whose data has not been removed."""
    query = select(predictions.c.record).where(has_data, predictions.c.ended_us < ended_before_us).limit(limit)
    return _read_records(connection, query)


def count_output_bytes(connection: Connection) -> int:
    """The size of the outputs of all predictions that have ended."""
    query = select(func.coalesce(func.sum(predictions.c.output_bytes), 0)).where(has_data)
    return int(connection.execute(query).scalar_one())


def oldest_with_outputs(connection: Connection, limit: int) -> list[Prediction]:
    """Up to `limit` ended predictions that have outputs, the oldest first."""
    query = select(predictions.c.record).where(has_data, predictions.c.output_bytes > 0)
    return _read_records(connection, query.order_by(predictions.c.ended_us).limit(limit))


def remove_data(connection: Connection, prediction: Prediction) -> None:
    values = changed_values(prediction) | {"data_removed": True}
    connection.execute(update(predictions).where(predictions.c.id == prediction.id).values(values))


def delete_old(connection: Connection, ended_before_us: int, limit: int) -> int:
    """Deletes up to `limit` predictions without data and returns their number."""
    is_old = and_(predictions.c.ended_us < ended_before_us, predictions.c.data_removed.is_(True))
    old = select(predictions.c.id).where(is_old).limit(limit).scalar_subquery()
    statement = delete(predictions).where(predictions.c.id.in_(old))
    return int(connection.execute(statement).rowcount)


def creation_times(connection: Connection, prediction_ids: Collection[str]) -> dict[str, int]:
    """The times of creation, in microseconds, of those predictions that exist, by id."""
    query = select(predictions.c.id, predictions.c.created_us).where(predictions.c.id.in_(prediction_ids))
    return {row.id: row.created_us for row in connection.execute(query)}


def _read_records(connection: Connection, query: Select[Any]) -> list[Prediction]:
    records = connection.execute(query).scalars().all()
    return [Prediction.model_validate_json(record) for record in records]
