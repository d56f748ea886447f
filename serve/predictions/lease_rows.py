"""The SQL statements on the leases of predictions. Each function runs in the caller's transaction."""

from collections.abc import Collection

from sqlalchemy import Connection, and_, bindparam, or_, select, update

from serve.database.tables import is_active, predictions
from serve.predictions.lease import Claim, Lease
from serve.predictions.prediction import Prediction
from serve.predictions.prediction_rows import IS_UNFINISHED, changed_values, delete_old_previews, update_one

_IS_HELD = and_(
    predictions.c.id == bindparam("_id"),
    predictions.c.lease_owner == bindparam("_owner"),
    predictions.c.lease_number == bindparam("_number"),
)
_IS_FREE = or_(predictions.c.lease_owner.is_(None), predictions.c.lease_expires_us < bindparam("_now_us"))
_UPDATE_HELD = update(predictions).where(_IS_HELD)
_UPDATE_UNFINISHED_HELD = update(predictions).where(IS_UNFINISHED, _IS_HELD)
_UPDATE_FREE = update(predictions).where(IS_UNFINISHED, predictions.c.lease_number == bindparam("_number"), _IS_FREE)
_IS_RENEWED = and_(
    predictions.c.id.in_(bindparam("_ids", expanding=True)), predictions.c.lease_owner == bindparam("_owner")
)
_RENEW = update(predictions).where(_IS_RENEWED)
_READ_RENEWED = select(predictions.c.id, predictions.c.lease_number).where(
    _IS_RENEWED, predictions.c.ended_us.is_(None)
)
_CLAIMABLE = (
    select(predictions)
    .where(
        predictions.c.ended_us.is_(None),
        is_active,
        _IS_FREE,
        predictions.c.pool.in_(bindparam("_pools", expanding=True)),
    )
    .order_by(predictions.c.losses, predictions.c.created_us, predictions.c.id)
    .limit(bindparam("_limit"))
)
_FREE_ABANDONED = update(predictions).where(
    # With the plain column, SQLite would read the index of all ended predictions while it holds the write lock.
    (predictions.c.ended_us + 0).is_not(None),
    is_active,
    predictions.c.lease_expires_us < bindparam("_now_us"),
)


def write_leased(connection: Connection, lease: Lease, prediction: Prediction, release: bool) -> bool:
    """Stores a change by the holder of a lease. Returns False if the lease is lost or the prediction has ended."""
    values = changed_values(prediction) | ({"lease_owner": None} if release else {})
    written = update_one(connection, _UPDATE_UNFINISHED_HELD, values, _held_by(lease))
    delete_old_previews(connection, prediction, written)
    return written


def release(connection: Connection, lease: Lease) -> None:
    """Gives a lease back: the place in the pool is free if the prediction has ended, else any process may claim it."""
    update_one(connection, _UPDATE_HELD, {"lease_owner": None}, _held_by(lease))


def count_loss(connection: Connection, lease: Lease) -> int:
    """Counts a replica that was lost while it generated this prediction, and returns the number of losses."""
    connection.execute(_UPDATE_HELD.values(losses=predictions.c.losses + 1), _held_by(lease))
    query = select(predictions.c.losses).where(predictions.c.id == lease.prediction_id)
    return int(connection.execute(query).scalar_one())


def renew(connection: Connection, owner: str, prediction_ids: Collection[str], expires_us: int) -> dict[str, int]:
    """Extends leases of a process. Returns the lease numbers of those whose predictions have not ended, by id."""
    own = {"_ids": list(prediction_ids), "_owner": owner}
    connection.execute(_RENEW, {"lease_expires_us": expires_us} | own)
    return {row.id: row.lease_number for row in connection.execute(_READ_RENEWED, own)}


def claim(
    connection: Connection, owner: str, pools: Collection[str], now_us: int, expires_us: int, limit: int
) -> list[Claim]:
    """Takes up to `limit` predictions whose leases have expired or were given back, the oldest first.

    Those that were lost before come last, so that one that causes the losses does not fail another one.
    """
    parameters = {"_now_us": now_us, "_pools": list(pools), "_limit": limit}
    claims = []
    for row in connection.execute(_CLAIMABLE, parameters).all():
        prediction = Prediction.model_validate_json(row.record)
        # Those that only waited in a replica did not cause the loss. A process may die of an image that it decodes.
        was_lost = row.lease_owner is not None and (prediction.is_generated or not prediction.is_fetched)
        prediction = prediction.claimed()
        lease, losses = Lease(row.id, owner, row.lease_number + 1), row.losses + was_lost
        values = {
            "lease_owner": owner,
            "lease_number": lease.number,
            "lease_expires_us": expires_us,
            "losses": losses,
            "record": prediction.model_dump_json(),
        }
        seen = {"_id": row.id, "_number": row.lease_number, "_now_us": now_us}
        if update_one(connection, _UPDATE_FREE, values, seen):
            claims.append(Claim(lease, prediction, losses, row.attached))
    return claims


def free_abandoned_places(connection: Connection, now_us: int) -> None:
    """Frees the places of ended predictions whose processes were lost before the work had stopped."""
    connection.execute(_FREE_ABANDONED, {"lease_owner": None, "_now_us": now_us})


def _held_by(lease: Lease) -> dict[str, object]:
    return {"_id": lease.prediction_id, "_owner": lease.owner, "_number": lease.number}
