"""Claims, leases and dead deliveries in the database."""

import asyncio

import pytest

from serve.database.connection import Database
from serve.database.times import to_us
from serve.predictions.lease import Lease
from serve.webhooks import delivery_rows as rows
from tests.fakes import NOON, FakeClock
from tests.unit.webhooks.helpers import make_store, open_ids, with_webhook

A, B, C = (letter * 26 for letter in "abc")
NOW = to_us(NOON)
LATER = NOW + 60_000_000
URL = "http://receiver/"


@pytest.fixture
async def store(database: Database) -> Database:
    """A database with deliveries for A, B and C. C has a host of its own, and only A has ended."""
    store = make_store(database, FakeClock())
    for prediction_id, host in ((A, "one:80"), (B, "one:80"), (C, "two:80")):
        await store.create(with_webhook(prediction_id, URL, host=host), attached=False)
    await store.finish(A, lambda record: record.succeeded(NOON), release=True)
    return database


async def read_due(database: Database, now_us: int = NOW, excluded: tuple[str, ...] = ()) -> list[rows.DueDelivery]:
    return await database.read(lambda connection: rows.read_due(connection, now_us, excluded, 10))


async def claim(database: Database, due: rows.DueDelivery, owner: str = "me", now_us: int = NOW) -> Lease | None:
    return await database.write(lambda connection: rows.claim(connection, due, owner, now_us, now_us + 1_000_000))


async def claim_id(database: Database, prediction_id: str, owner: str = "me", now_us: int = NOW) -> Lease:
    [due] = [each for each in await read_due(database, now_us) if each.prediction_id == prediction_id]
    lease = await claim(database, due, owner, now_us)
    assert lease is not None
    return lease


async def fail(database: Database, lease: Lease, due_us: int | None) -> None:
    await database.write(lambda connection: rows.record_failure(connection, lease, 1, "away", NOW, due_us))


async def test_due_deliveries_are_listed_without_excluded_hosts(store: Database) -> None:
    assert {each.prediction_id: each.has_ended for each in await read_due(store)} == {A: True, B: False, C: False}
    assert [each.prediction_id for each in await read_due(store, excluded=("one:80",))] == [C]


async def test_one_of_two_processes_claims_a_delivery(store: Database) -> None:
    due = (await read_due(store))[0]
    leases = await asyncio.gather(*(claim(store, due, owner) for owner in ("me", "you")))
    assert [lease is None for lease in leases].count(True) == 1
    assert due.prediction_id not in {each.prediction_id for each in await read_due(store)}


async def test_expired_lease_is_claimed_by_another_process_and_renewed_one_is_not(store: Database) -> None:
    lost, kept = await claim_id(store, A), await claim_id(store, B, "you")
    renewed = await store.write(lambda connection: rows.renew(connection, "you", [A, B], LATER + 1))
    assert renewed == {B: kept.number}
    due = await read_due(store, LATER)
    assert {each.prediction_id for each in due} == {A, C}
    assert (await claim_id(store, A, "you", LATER)).number == lost.number + 1


@pytest.mark.parametrize("operation", ["finish", "fail", "postpone"])
@pytest.mark.parametrize("next_owner", ["me", "you"])
async def test_writes_of_a_lost_lease_change_nothing(store: Database, operation: str, next_owner: str) -> None:
    lost = await claim_id(store, A)
    await claim_id(store, A, next_owner, LATER)
    if operation == "finish":
        await store.write(lambda connection: rows.finish(connection, lost))
    elif operation == "fail":
        await fail(store, lost, None)
    else:
        await store.write(lambda connection: rows.postpone(connection, lost, NOW))
    assert A in await open_ids(store)
    assert A not in {each.prediction_id for each in await read_due(store, LATER)}


async def test_finished_delivery_is_removed(store: Database) -> None:
    lease = await claim_id(store, A)
    await store.write(lambda connection: rows.finish(connection, lease))
    assert await open_ids(store) == [B, C]


async def test_failed_delivery_is_due_later(store: Database) -> None:
    await fail(store, await claim_id(store, A), LATER)
    assert A not in {each.prediction_id for each in await read_due(store, LATER - 1)}
    [due] = [each for each in await read_due(store, LATER) if each.prediction_id == A]
    assert due.attempts == 1


async def test_released_deliveries_are_due_at_once(store: Database) -> None:
    await claim_id(store, A)
    await store.write(lambda connection: rows.release_all(connection, "me"))
    assert A in {each.prediction_id for each in await read_due(store)}


async def test_undelivered_webhooks_of_ended_predictions_are_counted(store: Database) -> None:
    assert await store.read(rows.count_undelivered) == {"waiting": 1, "dead": 0}
    await fail(store, await claim_id(store, A), None)
    assert await store.read(rows.count_undelivered) == {"waiting": 0, "dead": 1}


@pytest.mark.parametrize("ids", [[A], None])
async def test_dead_delivery_is_listed_and_replayed(store: Database, ids: list[str] | None) -> None:
    await fail(store, await claim_id(store, A), None)
    assert A not in {each.prediction_id for each in await read_due(store, LATER)}
    [dead] = await store.read(lambda connection: rows.read_dead(connection, 10))
    assert (dead.prediction_id, dead.host, dead.attempts, dead.dead_us, dead.error) == (A, "one:80", 1, NOW, "away")
    assert await store.write(lambda connection: rows.replay(connection, [B], NOW)) == 0
    assert await store.write(lambda connection: rows.replay(connection, ids, NOW)) == 1
    [due] = [each for each in await read_due(store) if each.prediction_id == A]
    assert due.attempts == 0


async def test_old_dead_deliveries_are_deleted(store: Database) -> None:
    await fail(store, await claim_id(store, A), None)
    assert await store.write(lambda connection: rows.delete_dead(connection, NOW, 10)) == 0
    assert await store.write(lambda connection: rows.delete_dead(connection, NOW + 1, 10)) == 1
    assert await open_ids(store) == [B, C]
