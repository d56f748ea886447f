"""Delivery of webhooks with both databases, to a receiver on a loopback port.

Two deliverers on one database stand for two processes.
"""

import asyncio

import pytest
from sqlalchemy import delete

from serve import telemetry
from serve.database.connection import Database
from serve.database.tables import predictions
from serve.database.times import to_us
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.prediction import Output, Prediction
from serve.predictions.webhook import WebhookEvent
from serve.webhooks import delivery_rows as rows
from serve.webhooks.deliverer import LEASE_MARGIN_S, WebhookDeliverer
from serve.webhooks.retries import MAX_ATTEMPTS, MAX_DELAY_S
from tests.fakes import NOON, FakeClock
from tests.metrics import RecordedMetrics
from tests.unit.webhooks.helpers import (
    SETTINGS,
    attempts,
    dead,
    make_deliverer,
    make_store,
    open_ids,
    running,
    until,
    with_webhook,
)
from tests.webhook_receiver import Received, WebhookReceiver, webhook_receiver

A = "a" * 26


def start(record: Prediction) -> Prediction:
    return record.started(NOON)


def succeed(record: Prediction) -> Prediction:
    return record.succeeded(NOON)


def add_line(record: Prediction) -> Prediction:
    return record.with_log_lines("a line")


def add_image(record: Prediction) -> Prediction:
    return record.with_output(Output(index=0, name="0.webp"))


def statuses(received: list[Received]) -> list[str]:
    return [each.body["status"] for each in received]


async def until_failed(database: Database, count: int) -> None:
    async def has_failed() -> bool:
        return await attempts(database, A) == count

    await until(has_failed)


async def until_idle(deliverer: WebhookDeliverer) -> None:
    async def is_idle() -> bool:
        return deliverer.is_idle

    await until(is_idle)


async def all_delivered(database: Database) -> None:
    async def is_empty() -> bool:
        return not await open_ids(database)

    await until(is_empty)


async def test_events_of_a_running_prediction_arrive_in_order(database: Database) -> None:
    clock = FakeClock()
    store = make_store(database, clock)
    async with webhook_receiver() as receiver, running(make_deliverer(database, store, clock)):
        await store.create(with_webhook(A, receiver.url), attached=False)
        await store.update(A, add_line)
        await store.update(A, start)
        await receiver.wait_for(1)
        await store.update(A, add_line)
        await receiver.wait_for(2)
        await store.update(A, add_image)
        await receiver.wait_for(3)
        await store.finish(A, succeed, release=True)
        received = await receiver.wait_for(4)
        await all_delivered(database)
    assert statuses(received) == ["processing", "processing", "processing", "succeeded"]
    assert [each.body["logs"].count("a line") for each in received] == [1, 2, 2, 2]
    assert [each.body["output"] for each in received] == [[], [], [0], [0]]
    assert len({each.headers["webhook-id"] for each in received}) == 4
    assert received[0].headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (["start"], ["processing"]),
        (["output"], ["succeeded"]),
        (["completed"], ["succeeded"]),
        (["start", "completed"], ["processing", "succeeded"]),
        (["start", "output", "logs", "completed"], ["processing", "succeeded"]),
    ],
)
async def test_prediction_that_has_ended_before_its_delivery_sends_the_wanted_events(
    database: Database, events: list[WebhookEvent], expected: list[str]
) -> None:
    clock = FakeClock()
    store = make_store(database, clock)
    async with webhook_receiver() as receiver:
        await store.create(with_webhook(A, receiver.url, *events), attached=False)
        for change in (start, add_line, add_image):
            await store.update(A, change)
        await store.finish(A, succeed, release=True)
        async with running(make_deliverer(database, store, clock)):
            await all_delivered(database)
        assert statuses(receiver.received) == expected


async def test_prediction_that_another_process_runs_is_followed(database: Database) -> None:
    clock = FakeClock()
    notifier = ChangeNotifier(database)
    owner, other = make_store(database, clock), make_store(database, clock, notifier)
    listening = asyncio.create_task(notifier.run())
    async with webhook_receiver() as receiver, running(make_deliverer(database, other, clock)):
        await owner.create(with_webhook(A, receiver.url, "start", "completed"), attached=False)
        await owner.update(A, start)
        await receiver.wait_for(1)
        await owner.finish(A, succeed, release=True)
        assert statuses(await receiver.wait_for(2)) == ["processing", "succeeded"]
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def make_ended(database: Database, clock: FakeClock, receiver: WebhookReceiver, *ids: str) -> None:
    """Predictions that have ended before any delivery."""
    store = make_store(database, clock)
    for prediction_id in ids:
        await store.create(with_webhook(prediction_id, receiver.url, "completed"), attached=False)
        await store.finish(prediction_id, succeed, release=True)


async def test_receiver_that_was_away_gets_the_last_event_after_a_restart(database: Database) -> None:
    clock = FakeClock()
    async with webhook_receiver([500, 503, 200]) as receiver:
        await make_ended(database, clock, receiver, A)
        for attempt in (1, 2):
            # A new process for each attempt.
            async with running(make_deliverer(database, make_store(database, clock), clock)):
                await until_failed(database, attempt)
            clock.elapsed_s += MAX_DELAY_S
        async with running(make_deliverer(database, make_store(database, clock), clock)):
            await all_delivered(database)
        assert statuses(receiver.received) == ["succeeded"] * 3
        assert {each.headers["webhook-id"] for each in receiver.received} == {f"msg_{A}"}
        assert len({each.headers["webhook-timestamp"] for each in receiver.received}) == 3


async def test_attempt_waits_for_its_time(database: Database) -> None:
    clock = FakeClock()
    async with webhook_receiver([500, 200]) as receiver:
        await make_ended(database, clock, receiver, A)
        deliverer = make_deliverer(database, make_store(database, clock), clock)
        async with running(deliverer):
            await until_failed(database, 1)
        again = make_deliverer(database, make_store(database, clock), clock)
        await again.claim()
        await again.aclose()
        assert len(receiver.received) == 1


async def test_process_that_stops_during_a_request_leaves_it_to_another_one(database: Database) -> None:
    clock = FakeClock()
    async with webhook_receiver() as receiver:
        receiver.may_answer.clear()
        await make_ended(database, clock, receiver, A)
        async with running(make_deliverer(database, make_store(database, clock), clock)):
            await receiver.wait_for(1)
        receiver.may_answer.set()
        async with running(make_deliverer(database, make_store(database, clock), clock)):
            await receiver.wait_for(2)
            await all_delivered(database)


async def test_process_that_was_killed_loses_its_delivery_after_the_lease(database: Database) -> None:
    clock = FakeClock()
    async with webhook_receiver() as receiver:
        receiver.may_answer.clear()
        await make_ended(database, clock, receiver, A)
        killed = make_deliverer(database, make_store(database, clock), clock)
        await killed.claim()
        await receiver.wait_for(1)
        clock.elapsed_s += 60
        async with running(make_deliverer(database, make_store(database, clock), clock)):
            await receiver.wait_for(2)
            await killed.aclose()
            receiver.may_answer.set()
            await all_delivered(database)


async def test_process_that_has_lost_its_lease_stops(database: Database) -> None:
    clock = FakeClock()
    store = make_store(database, clock)
    async with webhook_receiver() as receiver:
        await store.create(with_webhook(A, receiver.url), attached=False)
        slow, fast = (make_deliverer(database, store, clock) for _ in range(2))
        await slow.claim()
        clock.elapsed_s += 60
        await fast.claim()
        await slow.renew_leases()
        await until_idle(slow)
        await store.update(A, start)
        await store.finish(A, succeed, release=True)
        await all_delivered(database)
        assert statuses(receiver.received).count("succeeded") == 1
        for each in (slow, fast):
            await each.aclose()


async def test_process_that_cannot_renew_its_lease_sends_nothing(database: Database) -> None:
    clock, monotonic = FakeClock(), FakeClock()
    store = make_store(database, clock)
    async with webhook_receiver() as receiver:
        await store.create(with_webhook(A, receiver.url), attached=False)
        deliverer = make_deliverer(database, store, clock, monotonic=monotonic)
        await deliverer.claim()
        monotonic.elapsed_s += LEASE_MARGIN_S
        await store.update(A, start)
        await until_idle(deliverer)
        assert receiver.received == []
        assert await open_ids(database) == [A]
        await deliverer.aclose()


async def test_last_failed_attempt_leaves_a_dead_delivery_that_can_be_replayed(
    database: Database, metrics: RecordedMetrics
) -> None:
    clock = FakeClock()
    async with webhook_receiver([500]) as receiver:
        await make_ended(database, clock, receiver, A)
        deliverer = make_deliverer(database, make_store(database, clock), clock)

        for _ in range(MAX_ATTEMPTS):
            await deliverer.claim()
            await until_idle(deliverer)
            clock.elapsed_s += MAX_DELAY_S
        [each] = await dead(database)
        assert (each.prediction_id, each.attempts) == (A, MAX_ATTEMPTS)
        assert "500" in each.error
        assert len(receiver.received) == MAX_ATTEMPTS
        await deliverer.measure()
        assert metrics.increased(telemetry.WEBHOOKS_UNDELIVERED) == {("dead",): 1}
        assert metrics.values[telemetry.WEBHOOKS.name] == {
            ("delivered",): 0,
            ("failed",): MAX_ATTEMPTS - 1,
            ("dead",): 1,
        }
        receiver.statuses = [200]
        await database.write(lambda connection: rows.replay(connection, [A], to_us(clock.now())))
        async with running(deliverer):
            await all_delivered(database)
        assert await dead(database) == []
        assert metrics.value(telemetry.WEBHOOKS, "delivered") == 1


@pytest.mark.parametrize("status", [302, 404, 410, 429])
async def test_other_statuses_than_success_are_failures(database: Database, status: int) -> None:
    clock = FakeClock()
    async with webhook_receiver([status]) as receiver:
        await make_ended(database, clock, receiver, A)
        async with running(make_deliverer(database, make_store(database, clock), clock)):
            await until_failed(database, 1)
        assert await open_ids(database) == [A]
        assert [each.path for each in receiver.received] == ["/"]


async def test_private_address_is_not_connected_to(database: Database) -> None:
    clock = FakeClock()
    settings = SETTINGS.model_copy(update={"allowed_hosts": ()})
    async with webhook_receiver() as receiver:
        await make_ended(database, clock, receiver, A)
        deliverer = make_deliverer(database, make_store(database, clock), clock, settings)
        await deliverer.claim()
        await until_idle(deliverer)
        assert receiver.received == []
        assert await open_ids(database) == [A]
        await deliverer.aclose()


async def test_receiver_that_does_not_answer_delays_no_other_one(database: Database) -> None:
    clock = FakeClock()
    store = make_store(database, clock)
    settings = SETTINGS.model_copy(update={"max_concurrent_per_host": 2})
    async with webhook_receiver() as silent, webhook_receiver() as other:
        silent.may_answer.clear()
        for number in range(10):
            waiting = with_webhook(f"{number:026}", silent.url, "completed", host="silent:80")
            await store.create(waiting, attached=False)
            await store.finish(waiting.id, succeed, release=True)
        await store.create(with_webhook(A, other.url, "completed", host="other:80"), attached=False)
        await store.finish(A, succeed, release=True)
        async with running(make_deliverer(database, store, clock, settings)):
            await other.wait_for(1)
            assert len(await silent.wait_for(2)) == 2
            silent.may_answer.set()
            await all_delivered(database)
        assert {each.body["id"] for each in silent.received} == {f"{number:026}" for number in range(10)}


async def test_delivery_of_a_removed_prediction_is_removed(database: Database) -> None:
    clock = FakeClock()
    async with webhook_receiver() as receiver:
        await make_ended(database, clock, receiver, A)
        await database.write(lambda connection: connection.execute(delete(predictions)))
        async with running(make_deliverer(database, make_store(database, clock), clock)):
            await all_delivered(database)
        assert receiver.received == []
