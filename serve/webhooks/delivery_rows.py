"""The SQL statements on the table of webhook deliveries. Each function runs in the caller's transaction."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, exists, func, or_, select, update

from serve.database.tables import is_open, predictions
from serve.database.tables import webhook_deliveries as deliveries
from serve.predictions.lease import Lease

# Built once, as processes look for due deliveries all the time; see `prediction_rows`.
_IS_DUE = and_(
    is_open,
    deliveries.c.due_us <= bindparam("_now_us"),
    or_(deliveries.c.lease_owner.is_(None), deliveries.c.lease_expires_us < bindparam("_now_us")),
)
_READ_DUE = (
    select(deliveries, predictions.c.id.label("id"), predictions.c.ended_us)
    .outerjoin(predictions, predictions.c.id == deliveries.c.prediction_id)
    .where(_IS_DUE, deliveries.c.host.not_in(bindparam("_excluded_hosts", expanding=True)))
    .order_by(deliveries.c.due_us)
    .limit(bindparam("_limit"))
)
_CLAIM = update(deliveries).where(
    deliveries.c.prediction_id == bindparam("_id"), deliveries.c.lease_number == bindparam("_number"), _IS_DUE
)


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """A delivery that no process has the lease of."""

    prediction_id: str
    host: str
    lease_number: int
    attempts: int
    """Of the last event."""
    has_ended: bool
    """Whether only the last event of the prediction is left to send."""


@dataclass(frozen=True, slots=True)
class DeadDelivery:
    """A delivery whose last attempt has failed."""

    prediction_id: str
    host: str
    attempts: int
    dead_us: int
    error: str


def read_due(connection: Connection, now_us: int, excluded_hosts: Collection[str], limit: int) -> list[DueDelivery]:
    """Deliveries that may be claimed, the first due one first."""
    parameters = {"_now_us": now_us, "_excluded_hosts": list(excluded_hosts), "_limit": limit}
    return [
        DueDelivery(
            row.prediction_id, row.host, row.lease_number, row.attempts, row.id is None or row.ended_us is not None
        )
        for row in connection.execute(_READ_DUE, parameters)
    ]


def claim(connection: Connection, due: DueDelivery, owner: str, now_us: int, expires_us: int) -> Lease | None:
    """Takes the lease of a delivery, or returns None if another process was faster."""
    lease = Lease(due.prediction_id, owner, due.lease_number + 1)
    values = {"lease_owner": owner, "lease_number": lease.number, "lease_expires_us": expires_us}
    unchanged = {"_id": due.prediction_id, "_number": due.lease_number, "_now_us": now_us}
    changed = connection.execute(_CLAIM, values | unchanged)
    return lease if changed.rowcount == 1 else None


def renew(connection: Connection, owner: str, prediction_ids: Collection[str], expires_us: int) -> dict[str, int]:
    """Extends leases of a process. Returns the numbers of those that it still has, by prediction."""
    is_owned = and_(deliveries.c.prediction_id.in_(prediction_ids), deliveries.c.lease_owner == owner)
    connection.execute(update(deliveries).where(is_open, is_owned).values(lease_expires_us=expires_us))
    query = select(deliveries.c.prediction_id, deliveries.c.lease_number).where(is_open, is_owned)
    return {row.prediction_id: row.lease_number for row in connection.execute(query)}


def release_all(connection: Connection, owner: str) -> None:
    """Gives all leases of a process back."""
    is_owned = deliveries.c.lease_owner == owner
    connection.execute(update(deliveries).where(is_open, is_owned).values(lease_owner=None))


def finish(connection: Connection, lease: Lease) -> None:
    """Removes a delivery that has nothing left to send."""
    connection.execute(delete(deliveries).where(_is_held(lease)))


def postpone(connection: Connection, lease: Lease, due_us: int) -> None:
    """Gives the lease back without an attempt."""
    values = {"lease_owner": None, "due_us": due_us}
    connection.execute(update(deliveries).where(_is_held(lease)).values(values))


def record_failure(
    connection: Connection, lease: Lease, attempts: int, error: str, now_us: int, due_us: int | None
) -> None:
    """Gives the lease back after a failed attempt. Without a time for the next one, the delivery is dead."""
    values: dict[str, object] = {"lease_owner": None, "attempts": attempts, "error": error}
    values |= {"dead_us": now_us} if due_us is None else {"due_us": due_us}
    connection.execute(update(deliveries).where(_is_held(lease)).values(values))


def read_dead(connection: Connection, limit: int) -> list[DeadDelivery]:
    """Dead deliveries, the newest first."""
    query = (
        select(deliveries).where(deliveries.c.dead_us.is_not(None)).order_by(deliveries.c.dead_us.desc()).limit(limit)
    )
    return [
        DeadDelivery(row.prediction_id, row.host, row.attempts, row.dead_us, row.error)
        for row in connection.execute(query)
    ]


def count_undelivered(connection: Connection) -> dict[str, int]:
    """The numbers of deliveries of ended predictions with more attempts (`waiting`), and without (`dead`)."""
    has_ended = exists().where(predictions.c.id == deliveries.c.prediction_id, predictions.c.ended_us.is_not(None))
    waiting = select(func.count()).select_from(deliveries).where(is_open, has_ended)
    dead = select(func.count()).select_from(deliveries).where(~is_open)
    return {
        "waiting": connection.execute(waiting).scalar_one(),
        "dead": connection.execute(dead).scalar_one(),
    }


def replay(connection: Connection, prediction_ids: Sequence[str] | None, now_us: int) -> int:
    """Makes dead deliveries due, all of them if `prediction_ids` is None. Returns their number."""
    values = {"dead_us": None, "due_us": now_us, "attempts": 0}
    statement = update(deliveries).where(deliveries.c.dead_us.is_not(None)).values(values)
    if prediction_ids is not None:
        statement = statement.where(deliveries.c.prediction_id.in_(prediction_ids))
    return int(connection.execute(statement).rowcount)


def delete_dead(connection: Connection, dead_before_us: int, limit: int) -> int:
    """Deletes up to `limit` dead deliveries that are old, or whose predictions were removed. Returns their number."""
    is_orphan = ~exists().where(predictions.c.id == deliveries.c.prediction_id)
    is_old = and_(deliveries.c.dead_us.is_not(None), or_(deliveries.c.dead_us < dead_before_us, is_orphan))
    old = select(deliveries.c.prediction_id).where(is_old).limit(limit).scalar_subquery()
    return int(connection.execute(delete(deliveries).where(deliveries.c.prediction_id.in_(old))).rowcount)


def _is_held(lease: Lease) -> ColumnElement[bool]:
    return and_(
        deliveries.c.prediction_id == lease.prediction_id,
        deliveries.c.lease_owner == lease.owner,
        deliveries.c.lease_number == lease.number,
    )
