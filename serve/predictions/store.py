"""Stores prediction records in the database, with the leases of the processes that run them."""

import secrets
from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from serve.access.caller import ANONYMOUS, Caller
from serve.database.connection import Database
from serve.database.times import to_us
from serve.errors import NotFound
from serve.events import Preview
from serve.predictions import lease_rows
from serve.predictions import prediction_rows as rows
from serve.predictions.admission import work_of
from serve.predictions.capacity import Capacity
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.followers import Followers
from serve.predictions.idempotency import IdempotencyKey, find_earlier
from serve.predictions.lease import Claim, Lease
from serve.predictions.leased_record import LeasedRecord, RecordWriter, log_end
from serve.predictions.prediction import Prediction, utc_now
from serve.predictions.prediction_pages import PageQuery, read_page
from serve.predictions.preview_rows import StoredPreview, read_previews

LEASE_S = 8.0
"""A process that does not renew its leases for this long loses them. The clocks of all nodes must agree within seconds;
otherwise predictions are generated twice, and recorded once."""

PredictionUpdate = Callable[[Prediction], Prediction]


class PredictionStore:
    """The records of predictions. A change is a function from record to record.

    `limits` has the number of predictions that each pool accepts at once. `on_lost` is called with the id of a
    prediction that this process must stop to run. Methods raise `NotFound` for an unknown or removed record, and
    `DatabaseUnavailable`.
    """

    def __init__(
        self,
        database: Database,
        notifier: ChangeNotifier,
        limits: Mapping[str, int],
        clock: Callable[[], datetime] = utc_now,
        lease_s: float = LEASE_S,
    ) -> None:
        self._database = database
        self._notifier = notifier
        self._pools = limits.keys()
        self._clock = clock
        self._lease_s = lease_s
        self._owner = secrets.token_hex(16)
        self._writer = RecordWriter(database, notifier)
        self._held: dict[str, LeasedRecord] = {}
        self._followers = Followers(notifier, self.get)
        self._capacity = Capacity(limits, clock)
        self.on_lost: Callable[[str], None] = lambda _: None

    async def check_capacity(self, pool: str, caller: Caller = ANONYMOUS) -> None:
        """Raises `PoolFull` or `TooManyPredictions` if a prediction for `pool` would be rejected now."""
        await self._database.read(lambda connection: self._capacity.check(connection, pool, caller))

    async def is_full(self) -> bool:
        """Whether every pool is full."""
        return await self._database.read(self._capacity.is_full)

    async def find_earlier(self, idempotency: IdempotencyKey, owner: str) -> Prediction | None:
        """The prediction that an earlier request of the owner with this key created. Raises `IdempotencyKeyReused`."""
        return await self._database.read(lambda connection: find_earlier(connection, idempotency, owner))

    async def create(
        self,
        prediction: Prediction,
        attached: bool,
        caller: Caller = ANONYMOUS,
        idempotency: IdempotencyKey | None = None,
    ) -> Prediction:
        """Stores a new prediction, takes its lease, and returns it.

        Returns that of an earlier request with the same key or id, if there is one.

        Raises `PoolFull`, `TooManyPredictions` and `IdempotencyKeyReused`. An `attached` prediction is cancelled
        instead of taken up if this process is lost.
        """
        pool, lease = prediction.plan.pool, Lease(prediction.id, self._owner, 1)
        work, expires_us = work_of(prediction.plan), self._expires_us()

        def insert(connection: Connection) -> Prediction:
            self._capacity.lock(connection, pool, caller)
            if earlier := _find_attempt(connection, prediction, idempotency):
                return earlier
            self._capacity.check(connection, pool, caller)
            rows.insert_prediction(connection, prediction, lease, expires_us, work, attached, idempotency)
            return prediction

        try:
            stored = await self._database.write(insert)
        except IntegrityError:
            # A request for another pool has stored the same key since this one looked for it.
            stored = await self._database.write(insert)
        if is_same_creation(stored, prediction):
            self._hold(lease, prediction)
        return stored

    async def get(self, prediction_id: str) -> Prediction:
        if held := self._held.get(prediction_id):
            return held.prediction
        prediction = None
        if "\0" not in prediction_id:  # PostgreSQL rejects it in a text
            prediction = await self._database.read(lambda connection: rows.read_prediction(connection, prediction_id))
        if prediction is None:
            raise unknown_prediction(prediction_id)
        return prediction

    async def page(self, query: PageQuery) -> list[Prediction]:
        """A page of predictions, the newest first."""
        older_than = await self._cursor(query.older_than, query.owner)
        newer_than = await self._cursor(query.newer_than, query.owner)
        found = await self._database.read(lambda connection: read_page(connection, query, older_than, newer_than))
        return [self._held[each.id].prediction if each.id in self._held else each for each in found]

    async def update(self, prediction_id: str, change: PredictionUpdate) -> Prediction:
        """Applies a change that does not end the record, and returns the record.

        Without the lease, or if the record has ended, nothing changes.
        """
        held = self._held.get(prediction_id)
        if held is None:
            return await self.get(prediction_id)
        held.change(change(held.prediction))
        return held.prediction

    def add_preview(self, prediction_id: str, preview: Preview) -> None:
        """Replaces the preview of an image. Without the lease, nothing changes."""
        if held := self._held.get(prediction_id):
            held.add_preview(preview)

    def drop_preview(self, prediction_id: str, image: int) -> None:
        """Removes the preview of an image, if there is one."""
        if held := self._held.get(prediction_id):
            held.drop_preview(image)

    async def previews(self, prediction_id: str) -> dict[int, StoredPreview]:
        """The newest preview of each unfinished image, by index; empty for an unknown prediction."""
        if held := self._held.get(prediction_id):
            return dict(held.previews)
        return await self._database.read(lambda connection: read_previews(connection, prediction_id))

    async def finish(self, prediction_id: str, change: PredictionUpdate, release: bool = False) -> bool:
        """Applies a change that ends the record. Returns False if it had ended or was removed before.

        With `release`, the lease is given back, and it is needed. Otherwise, any process may end the record, and the
        place in the pool is free when `release` is called.
        """
        held = self._held.get(prediction_id)
        if held is None:
            return not release and await self._finish_elsewhere(prediction_id, change)
        finished = await held.end(change, release)
        if finished and release:
            self._held.pop(prediction_id, None)
        return finished

    async def release(self, prediction_id: str) -> None:
        """Gives the lease back, if this process has it."""
        held = self._held.pop(prediction_id, None)
        if held is not None:
            held.abandon()
            await self._database.write(lambda connection: lease_rows.release(connection, held.lease))

    def lease_number(self, prediction_id: str) -> int:
        """The number of this process' lease; 0 if it has lost the lease, so that nothing it does is recorded."""
        held = self._held.get(prediction_id)
        return 0 if held is None else held.lease.number

    async def count_loss(self, prediction_id: str) -> int:
        """Counts a replica that was lost while it generated this prediction. Returns the number of all losses."""
        held = self._held[prediction_id]
        return await self._database.write(lambda connection: lease_rows.count_loss(connection, held.lease))

    async def wait_for_change(self, seen: Prediction) -> Prediction:
        """The record once it is newer than `seen` or has ended."""
        return await self._followers.wait_for_change(seen)

    def overdue(self) -> list[str]:
        """The ids of the predictions of this process whose deadlines have passed."""
        now = self._clock()
        return [held.prediction.id for held in self._held.values() if held.prediction.is_overdue(now)]

    async def renew_leases(self) -> Collection[str]:
        """Extends the leases of this process. Returns the ids of those that it has lost, or that have ended."""
        before = dict(self._held)
        if not before:
            return []
        expires_us = self._expires_us()
        numbers = await self._database.write(
            lambda connection: lease_rows.renew(connection, self._owner, before.keys(), expires_us)
        )
        lost = [
            prediction_id
            for prediction_id, held in before.items()
            if not held.prediction.ended and numbers.get(prediction_id) != held.lease.number
        ]
        for prediction_id in lost:
            before[prediction_id].lose()
        return lost

    async def claim(self, limit: int) -> list[Claim]:
        """Takes up to `limit` predictions whose processes were lost or stopped."""
        now_us, expires_us = to_us(self._clock()), self._expires_us()

        def work(connection: Connection) -> list[Claim]:
            lease_rows.free_abandoned_places(connection, now_us)
            return lease_rows.claim(connection, self._owner, self._pools, now_us, expires_us, limit)

        claims = await self._database.write(work)
        for each in claims:
            self._hold(each.lease, each.prediction)
        return claims

    async def _cursor(self, prediction_id: str | None, owner: str | None) -> Prediction | None:
        prediction = None if prediction_id is None else await self.get(prediction_id)
        if prediction is not None and owner not in (None, prediction.owner):
            raise unknown_prediction(prediction.id)
        return prediction

    def _hold(self, lease: Lease, prediction: Prediction) -> None:
        self._held[prediction.id] = LeasedRecord(self._writer, lease, prediction, self._lose)

    def _lose(self, prediction_id: str) -> None:
        self._held.pop(prediction_id, None)
        self.on_lost(prediction_id)

    async def _finish_elsewhere(self, prediction_id: str, change: PredictionUpdate) -> bool:
        def work(connection: Connection) -> Prediction | bool | None:
            """The ended prediction; False if it had ended before; None if there was another change at the same time."""
            seen = rows.read_prediction(connection, prediction_id)
            if seen is None or seen.ended:
                return False
            ended = change(seen)
            if not rows.write_unleased(connection, ended, seen.revision):
                return None
            self._notifier.publish(connection, prediction_id)
            return ended

        while (finished := await self._database.write(work)) is None:
            pass
        self._notifier.notify(prediction_id)
        if isinstance(finished, Prediction):
            log_end(finished)
        return finished is not False

    def _expires_us(self) -> int:
        return to_us(self._clock()) + int(self._lease_s * rows.SECOND_US)


def unknown_prediction(prediction_id: str) -> NotFound:
    return NotFound(f"there is no prediction {prediction_id[:64]!r}; it may have expired")


def _find_attempt(
    connection: Connection, prediction: Prediction, idempotency: IdempotencyKey | None
) -> Prediction | None:
    """What an earlier attempt has stored: a request with the same key, or a transaction whose answer was lost."""
    if idempotency is not None:
        return find_earlier(connection, idempotency, prediction.owner)
    return rows.read_prediction(connection, prediction.id)


def is_same_creation(stored: Prediction, prediction: Prediction) -> bool:
    """Whether a stored record is that of this request; a client may choose an id twice."""
    return (stored.id, stored.created_at) == (prediction.id, prediction.created_at)
