"""The SQL statements on the table of predictions. Each function runs in the caller's transaction."""

from collections.abc import Mapping

from sqlalchemy import Connection, Update, and_, bindparam, func, insert, literal, select, update

from serve.database.tables import is_active, predictions, webhook_deliveries
from serve.database.times import to_us
from serve.predictions.admission import PoolLoad
from serve.predictions.idempotency import IdempotencyKey
from serve.predictions.lease import Lease
from serve.predictions.prediction import Prediction
from serve.predictions.preview_rows import delete_previews

Values = Mapping[str, object]

SECOND_US = 1_000_000
RECENT_PREDICTIONS = 32
"""The speed of a pool is that of this many predictions that have succeeded last."""

# SQLAlchemy takes longer to build a statement than SQLite to execute it, so the frequent ones are built once. Their
# parameters have other names than the columns, since parameters with names of columns are the values of an update.
_COUNT_ACTIVE = select(func.count()).select_from(predictions).where(is_active, predictions.c.pool == bindparam("_pool"))
_INSERT = insert(predictions)
_INSERT_DELIVERY = insert(webhook_deliveries)
_READ_RECORD = select(predictions.c.record).where(predictions.c.id == bindparam("_id"))
IS_UNFINISHED = and_(predictions.c.id == bindparam("_id"), predictions.c.ended_us.is_(None))
_UPDATE_SEEN = update(predictions).where(IS_UNFINISHED, predictions.c.revision == bindparam("_revision"))


def lock_pool(connection: Connection, pool: str) -> None:
    """Makes other admissions to the pool wait for the end of the transaction. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(literal(f"pool {pool}")))))


def lock_owner(connection: Connection, owner: str) -> None:
    """Makes other admissions for the owner wait for the end of the transaction, as `lock_pool` does for a pool."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(literal(f"owner {owner}")))))


def count_active_of_owner(connection: Connection, owner: str) -> int:
    query = select(func.count()).select_from(predictions).where(is_active, predictions.c.owner == owner)
    return int(connection.execute(query).scalar_one())


def count_active(connection: Connection, pool: str) -> int:
    """The predictions that take a place in a pool."""
    return int(connection.execute(_COUNT_ACTIVE, {"_pool": pool}).scalar_one())


def count_active_by_pool(connection: Connection) -> dict[str, int]:
    query = select(predictions.c.pool, func.count().label("number")).where(is_active).group_by(predictions.c.pool)
    return {row.pool: row.number for row in connection.execute(query)}


def read_load(connection: Connection, pool: str, now_us: int) -> PoolLoad:
    of_pool = predictions.c.pool == pool
    finished = (
        select(predictions.c.started_us, predictions.c.created_us, predictions.c.ended_us, predictions.c.work)
        .where(of_pool, predictions.c.status == "succeeded")
        .order_by(predictions.c.ended_us.desc())
        .limit(RECENT_PREDICTIONS)
    )
    active = select(predictions.c.work, predictions.c.created_us).where(of_pool, is_active)
    recent = [
        ((row.started_us or row.created_us) / SECOND_US, row.ended_us / SECOND_US, row.work)
        for row in connection.execute(finished)
    ]
    unfinished = connection.execute(active).all()
    oldest_us = min((row.created_us for row in unfinished), default=now_us)
    return PoolLoad(recent, [row.work for row in unfinished], (now_us - oldest_us) / SECOND_US)


def insert_prediction(
    connection: Connection,
    prediction: Prediction,
    lease: Lease,
    expires_us: int,
    work: float,
    attached: bool,
    idempotency: IdempotencyKey | None = None,
) -> None:
    """Raises `IntegrityError` if there is a prediction with this id or idempotency key."""
    values = {
        "id": prediction.id,
        "created_us": to_us(prediction.created_at),
        "owner": prediction.owner,
        "pool": prediction.plan.pool,
        "status": prediction.status,
        "work": work,
        "attached": attached,
        "data_removed": False,
        "revision": prediction.revision,
        "lease_owner": lease.owner,
        "lease_number": lease.number,
        "lease_expires_us": expires_us,
        "losses": 0,
        "idempotency_key": None if idempotency is None else idempotency.key,
        "request_hash": None if idempotency is None else idempotency.request_hash,
        "record": prediction.model_dump_json(),
    }
    connection.execute(_INSERT, values)
    if prediction.webhook is not None:
        # In this transaction, so that a recorded prediction never lacks its delivery.
        delivery = {
            "prediction_id": prediction.id,
            "host": prediction.webhook.host,
            "due_us": to_us(prediction.created_at),
            "attempts": 0,
            "lease_number": 0,
            "lease_expires_us": 0,
        }
        connection.execute(_INSERT_DELIVERY, delivery)


def read_prediction(connection: Connection, prediction_id: str) -> Prediction | None:
    record = connection.execute(_READ_RECORD, {"_id": prediction_id}).scalar_one_or_none()
    return None if record is None else Prediction.model_validate_json(record)


def write_unleased(connection: Connection, prediction: Prediction, seen_revision: int) -> bool:
    """Stores a change by another process. Returns False if there was another change since `seen_revision`."""
    seen = {"_id": prediction.id, "_revision": seen_revision}
    written = update_one(connection, _UPDATE_SEEN, changed_values(prediction), seen)
    delete_old_previews(connection, prediction, written)
    return written


def delete_old_previews(connection: Connection, prediction: Prediction, written: bool) -> None:
    """Deletes the previews of a prediction that has ended."""
    if written and prediction.ended and prediction.plan.previews:
        delete_previews(connection, prediction.id)


def changed_values(prediction: Prediction) -> dict[str, object]:
    started_us = None if prediction.started_at is None else to_us(prediction.started_at)
    ended_us = None if prediction.completed_at is None else to_us(prediction.completed_at)
    return {
        "status": prediction.status,
        "revision": prediction.revision,
        "record": prediction.model_dump_json(),
        "started_us": started_us,
        "ended_us": ended_us,
        "output_bytes": sum(output.size_bytes for output in prediction.outputs),
    }


def update_one(connection: Connection, statement: Update, values: Values, parameters: Values) -> bool:
    return connection.execute(statement, {**values, **parameters}).rowcount == 1
