"""The SQL statements on the table of predictions. Each function runs in the caller's transaction."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, func, insert, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serve.database.tables import has_data, is_active, predictions, webhook_deliveries
from serve.database.times import to_us
from serve.predictions.admission import PoolLoad
from serve.predictions.idempotency import IdempotencyKey
from serve.predictions.lease import Claim, Lease
from serve.predictions.prediction import Prediction
from serve.predictions.preview_rows import delete_previews

SECOND_US = 1_000_000
RECENT_PREDICTIONS = 32
"""The speed of a pool is that of this many predictions that have succeeded last."""


async def lock_pool(connection: AsyncConnection, pool: str) -> None:
    """Makes other admissions to the pool wait for the end of the transaction. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(literal(f"pool {pool}")))))


async def lock_owner(connection: AsyncConnection, owner: str) -> None:
    """Makes other admissions for the owner wait for the end of the transaction, as `lock_pool` does for a pool."""
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(literal(f"owner {owner}")))))


async def count_active_of_owner(connection: AsyncConnection, owner: str) -> int:
    query = select(func.count()).select_from(predictions).where(is_active, predictions.c.owner == owner)
    return int((await connection.execute(query)).scalar_one())


async def count_active(connection: AsyncConnection, pool: str) -> int:
    """The predictions that take a place in a pool."""
    query = select(func.count()).select_from(predictions).where(is_active, predictions.c.pool == pool)
    return int((await connection.execute(query)).scalar_one())


async def count_active_by_pool(connection: AsyncConnection) -> dict[str, int]:
    query = select(predictions.c.pool, func.count().label("number")).where(is_active).group_by(predictions.c.pool)
    return {row.pool: row.number for row in await connection.execute(query)}


async def read_load(connection: AsyncConnection, pool: str, now_us: int) -> PoolLoad:
    of_pool = predictions.c.pool == pool
    finished = (
        select(predictions.c.created_us, predictions.c.ended_us, predictions.c.work)
        .where(of_pool, predictions.c.status == "succeeded")
        .order_by(predictions.c.ended_us.desc())
        .limit(RECENT_PREDICTIONS)
    )
    active = select(predictions.c.work, predictions.c.created_us).where(of_pool, is_active)
    recent = [
        (row.created_us / SECOND_US, row.ended_us / SECOND_US, row.work) for row in await connection.execute(finished)
    ]
    unfinished = (await connection.execute(active)).all()
    oldest_us = min((row.created_us for row in unfinished), default=now_us)
    return PoolLoad(recent, [row.work for row in unfinished], (now_us - oldest_us) / SECOND_US)


async def insert_prediction(
    connection: AsyncConnection,
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
    await connection.execute(insert(predictions).values(values))
    if prediction.webhook is not None:
        # In this transaction, so that a recorded prediction never lacks its delivery.
        await connection.execute(
            insert(webhook_deliveries).values(
                prediction_id=prediction.id,
                host=prediction.webhook.host,
                due_us=to_us(prediction.created_at),
                attempts=0,
                lease_number=0,
                lease_expires_us=0,
            )
        )


async def read_prediction(connection: AsyncConnection, prediction_id: str) -> Prediction | None:
    query = select(predictions.c.record).where(predictions.c.id == prediction_id)
    record = (await connection.execute(query)).scalar_one_or_none()
    return None if record is None else Prediction.model_validate_json(record)


async def write_leased(connection: AsyncConnection, lease: Lease, prediction: Prediction, release: bool) -> bool:
    """Stores a change by the holder of a lease. Returns False if the lease is lost or the prediction has ended."""
    values = _changed_values(prediction) | ({"lease_owner": None} if release else {})
    written = await _update_one(connection, values, _is_unfinished(lease.prediction_id), _is_held(lease))
    await _delete_old_previews(connection, prediction, written)
    return written


async def write_unleased(connection: AsyncConnection, prediction: Prediction, seen_revision: int) -> bool:
    """Stores a change by another process. Returns False if there was another change since `seen_revision`."""
    unchanged = predictions.c.revision == seen_revision
    written = await _update_one(connection, _changed_values(prediction), _is_unfinished(prediction.id), unchanged)
    await _delete_old_previews(connection, prediction, written)
    return written


async def release(connection: AsyncConnection, lease: Lease) -> None:
    """Gives a lease back: the place in the pool is free if the prediction has ended, else any process may claim it."""
    await _update_one(connection, {"lease_owner": None}, _is_held(lease))


async def count_loss(connection: AsyncConnection, lease: Lease) -> int:
    """Counts a replica that was lost while it generated this prediction, and returns the number of losses."""
    statement = update(predictions).where(_is_held(lease)).values(losses=predictions.c.losses + 1)
    await connection.execute(statement)
    query = select(predictions.c.losses).where(predictions.c.id == lease.prediction_id)
    return int((await connection.execute(query)).scalar_one())


async def renew(
    connection: AsyncConnection, owner: str, prediction_ids: Collection[str], expires_us: int
) -> dict[str, int]:
    """Extends leases of a process. Returns the lease numbers of those whose predictions have not ended, by id."""
    is_held = and_(predictions.c.id.in_(prediction_ids), predictions.c.lease_owner == owner)
    await connection.execute(update(predictions).where(is_held).values(lease_expires_us=expires_us))
    query = select(predictions.c.id, predictions.c.lease_number).where(is_held, predictions.c.ended_us.is_(None))
    return {row.id: row.lease_number for row in await connection.execute(query)}


async def claim(
    connection: AsyncConnection, owner: str, pools: Collection[str], now_us: int, expires_us: int, limit: int
) -> list[Claim]:
    """Takes up to `limit` predictions whose leases have expired or were given back, the oldest first.

    Those that were lost before come last, so that one that causes the losses does not fail another one.
    """
    is_free = or_(predictions.c.lease_owner.is_(None), predictions.c.lease_expires_us < now_us)
    query = (
        select(predictions)
        .where(predictions.c.ended_us.is_(None), is_active, is_free, predictions.c.pool.in_(pools))
        .order_by(predictions.c.losses, predictions.c.created_us, predictions.c.id)
        .limit(limit)
    )
    claims = []
    for row in (await connection.execute(query)).all():
        prediction = Prediction.model_validate_json(row.record)
        # Those that only waited in a replica did not cause the loss.
        was_lost = row.lease_owner is not None and prediction.is_generated
        prediction = prediction.claimed()
        lease, losses = Lease(row.id, owner, row.lease_number + 1), row.losses + was_lost
        values = {
            "lease_owner": owner,
            "lease_number": lease.number,
            "lease_expires_us": expires_us,
            "losses": losses,
            "record": prediction.model_dump_json(),
        }
        unchanged = and_(predictions.c.lease_number == row.lease_number, is_free)
        if await _update_one(connection, values, _is_unfinished(row.id), unchanged):
            claims.append(Claim(lease, prediction, losses, row.attached))
    return claims


async def free_abandoned_places(connection: AsyncConnection, now_us: int) -> None:
    """Frees the places of ended predictions whose processes were lost before the work had stopped."""
    is_abandoned = and_(predictions.c.ended_us.is_not(None), is_active, predictions.c.lease_expires_us < now_us)
    await connection.execute(update(predictions).where(is_abandoned).values(lease_owner=None))


async def with_old_data(connection: AsyncConnection, ended_before_us: int, limit: int) -> list[Prediction]:
    """Up to `limit` predictions that ended before, whose data has not been removed."""
    query = select(predictions.c.record).where(has_data, predictions.c.ended_us < ended_before_us).limit(limit)
    return await _read_records(connection, query)


async def count_output_bytes(connection: AsyncConnection) -> int:
    """The size of the outputs of all predictions that have ended."""
    query = select(func.coalesce(func.sum(predictions.c.output_bytes), 0)).where(has_data)
    return int((await connection.execute(query)).scalar_one())


async def oldest_with_outputs(connection: AsyncConnection, limit: int) -> list[Prediction]:
    """Up to `limit` ended predictions that have outputs, the oldest first."""
    query = select(predictions.c.record).where(has_data, predictions.c.output_bytes > 0)
    return await _read_records(connection, query.order_by(predictions.c.ended_us).limit(limit))


async def remove_data(connection: AsyncConnection, prediction: Prediction) -> None:
    values = _changed_values(prediction) | {"data_removed": True}
    await connection.execute(update(predictions).where(predictions.c.id == prediction.id).values(values))


async def delete_old(connection: AsyncConnection, ended_before_us: int, limit: int) -> int:
    """Deletes up to `limit` predictions without data and returns their number."""
    is_old = and_(predictions.c.ended_us < ended_before_us, predictions.c.data_removed.is_(True))
    old = select(predictions.c.id).where(is_old).limit(limit).scalar_subquery()
    statement = delete(predictions).where(predictions.c.id.in_(old))
    return int((await connection.execute(statement)).rowcount)


async def creation_times(connection: AsyncConnection, prediction_ids: Collection[str]) -> dict[str, int]:
    """The times of creation, in microseconds, of those predictions that exist, by id."""
    query = select(predictions.c.id, predictions.c.created_us).where(predictions.c.id.in_(prediction_ids))
    return {row.id: row.created_us for row in await connection.execute(query)}


async def _read_records(connection: AsyncConnection, query: Select[Any]) -> list[Prediction]:
    records = (await connection.execute(query)).scalars().all()
    return [Prediction.model_validate_json(record) for record in records]


async def _delete_old_previews(connection: AsyncConnection, prediction: Prediction, written: bool) -> None:
    """Deletes the previews of a prediction that has ended."""
    if written and prediction.ended and prediction.plan.previews:
        await delete_previews(connection, prediction.id)


def _changed_values(prediction: Prediction) -> dict[str, object]:
    ended_us = None if prediction.completed_at is None else to_us(prediction.completed_at)
    return {
        "status": prediction.status,
        "revision": prediction.revision,
        "record": prediction.model_dump_json(),
        "ended_us": ended_us,
        "output_bytes": sum(output.size_bytes for output in prediction.outputs),
    }


async def _update_one(connection: AsyncConnection, values: dict[str, object], *conditions: ColumnElement[bool]) -> bool:
    statement = update(predictions).where(*conditions).values(values)
    return (await connection.execute(statement)).rowcount == 1


def _is_unfinished(prediction_id: str) -> ColumnElement[bool]:
    return and_(predictions.c.id == prediction_id, predictions.c.ended_us.is_(None))


def _is_held(lease: Lease) -> ColumnElement[bool]:
    is_same = predictions.c.id == lease.prediction_id
    return and_(is_same, predictions.c.lease_owner == lease.owner, predictions.c.lease_number == lease.number)
