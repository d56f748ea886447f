"""Idempotency keys: a request that is sent again with the same key creates no second prediction."""

from dataclasses import dataclass

from sqlalchemy import Connection, and_, select

from serve.database.tables import predictions
from serve.errors import IdempotencyKeyReused
from serve.predictions.prediction import Prediction


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The key that a client chose for a request. Each owner has keys of its own."""

    key: str
    request_hash: str
    """Of everything that the request asks for."""


def find_earlier(connection: Connection, idempotency: IdempotencyKey, owner: str) -> Prediction | None:
    """The prediction that a request of the same owner with the same key has created.

    Raises `IdempotencyKeyReused` if that was another request.
    """
    query = select(predictions.c.record, predictions.c.request_hash)
    is_same = and_(predictions.c.owner == owner, predictions.c.idempotency_key == idempotency.key)
    row = connection.execute(query.where(is_same)).one_or_none()
    if row is None:
        return None
    if row.request_hash != idempotency.request_hash:
        raise IdempotencyKeyReused(idempotency.key)
    return Prediction.model_validate_json(row.record)
