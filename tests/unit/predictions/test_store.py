"""The prediction store, with SQLite and PostgreSQL. Two stores on one database stand for two processes."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection

from serve.access.caller import NO_OWNER, Caller
from serve.database.connection import Database
from serve.errors import DatabaseUnavailable, IdempotencyKeyReused, NotFound, PoolFull, TooManyPredictions
from serve.events import Preview
from serve.predictions import leased_record
from serve.predictions import prediction_rows as rows
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.idempotency import IdempotencyKey
from serve.predictions.lease import Lease
from serve.predictions.prediction import Prediction
from serve.predictions.prediction_pages import PageQuery
from serve.predictions.preview_rows import StoredPreview, read_previews
from serve.predictions.store import LEASE_S, PredictionStore
from tests.fakes import NOON, FakeClock, plan, prediction
from tests.transactions import wait_in_transaction
from tests.unit.predictions.helpers import recorded_statements

A, B, C = (letter * 26 for letter in "abc")
POOL = prediction(A).plan.pool
OTHER_POOL = "schnell"
KEY = IdempotencyKey("my key", "hash")


def succeed(record: Prediction) -> Prediction:
    return record.succeeded(NOON)


def cancel(record: Prediction) -> Prediction:
    return record.canceled(NOON)


def add_line(record: Prediction) -> Prediction:
    return record.with_log_lines("a line")


def make_store(database: Database, clock: FakeClock | None = None, limit: int = 100) -> PredictionStore:
    return PredictionStore(database, ChangeNotifier(database), {POOL: limit}, (clock or FakeClock()).now)


async def make_running(database: Database, *ids: str) -> PredictionStore:
    """A store that runs a prediction for each id."""
    store = make_store(database)
    for prediction_id in ids:
        await store.create(prediction(prediction_id), attached=False)
    return store


async def stored(database: Database, prediction_id: str) -> Prediction:
    """The record as another process reads it."""
    return await make_store(database).get(prediction_id)


async def test_unknown_id_raises_not_found(database: Database) -> None:
    store = make_store(database)
    for call in (store.get(A), store.update(A, add_line), store.wait_for_change(prediction(A))):
        with pytest.raises(NotFound, match=A):
            await call


async def test_id_with_a_null_character_is_unknown(database: Database) -> None:
    with pytest.raises(NotFound):
        await make_store(database).get("a\0")


async def test_waiter_that_has_seen_unstored_changes_notices_the_end(database: Database) -> None:
    await make_running(database, A)
    other = make_store(database)
    seen = prediction(A).model_copy(update={"revision": 9})
    await other.finish(A, cancel)
    assert (await asyncio.wait_for(other.wait_for_change(seen), 2)).status == "canceled"


async def test_created_record_is_stored_unchanged(database: Database) -> None:
    await make_running(database, A)
    assert await stored(database, A) == prediction(A)


async def test_ended_record_does_not_end_or_change_again(database: Database) -> None:
    store = await make_running(database, A)
    assert await store.finish(A, cancel)
    assert not await store.finish(A, succeed)
    assert (await store.update(A, add_line)).logs == ""
    assert (await stored(database, A)).status == "canceled"


async def test_end_is_stored_with_the_changes_before_it(database: Database) -> None:
    store = await make_running(database, A)
    await store.update(A, add_line)
    assert await store.finish(A, succeed, release=True)
    record = await stored(database, A)
    assert (record.status, record.logs) == ("succeeded", "a line\n")


async def test_changes_are_stored_while_the_prediction_runs(database: Database) -> None:
    store = await make_running(database, A)
    for _ in range(3):
        await store.update(A, add_line)
    async with asyncio.timeout(5):
        while (await stored(database, A)).logs != "a line\n" * 3:
            await asyncio.sleep(0.01)


async def test_changes_of_all_predictions_are_stored_together(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await make_running(database, A, B)
    transactions = []
    write = database.write

    async def count(work: Any) -> Any:
        transactions.append(work)
        return await write(work)

    monkeypatch.setattr(database, "write", count)
    for each in (A, B, A):
        await store.update(each, add_line)
    async with asyncio.timeout(5):
        while (await stored(database, A)).logs != "a line\n" * 2:
            await asyncio.sleep(0.01)
    assert (await stored(database, B)).logs == "a line\n"
    assert len(transactions) == 1


async def test_changes_and_the_end_wait_for_a_database_that_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await make_running(database, A, B)
    is_away = True
    write = database.write

    async def fail(work: Any) -> Any:
        if is_away:
            raise DatabaseUnavailable("away")
        return await write(work)

    monkeypatch.setattr(database, "write", fail)
    monkeypatch.setattr(leased_record, "STORE_PERIOD_S", 0.01)
    monkeypatch.setattr(leased_record, "RETRY_S", 0.01)
    await store.update(A, add_line)
    finishing = asyncio.create_task(store.finish(B, succeed, release=True))
    await asyncio.sleep(0.05)
    assert (await store.get(A)).logs == "a line\n"
    assert not finishing.done()
    is_away = False
    assert await asyncio.wait_for(finishing, 5)
    async with asyncio.timeout(5):
        while (await stored(database, A)).logs != "a line\n":
            await asyncio.sleep(0.01)


async def test_full_pool_rejects_until_the_work_has_stopped(database: Database) -> None:
    store = make_store(database, limit=1)
    await store.create(prediction(A), attached=False)
    for call in (store.create(prediction(B), attached=False), store.check_capacity(POOL)):
        with pytest.raises(PoolFull) as caught:
            await call
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s >= 1
    assert await store.is_full()
    await store.finish(A, cancel)
    assert await store.is_full()
    await store.release(A)
    await store.create(prediction(B), attached=False)


async def test_two_processes_do_not_exceed_the_limit_together(database: Database) -> None:
    stores = [make_store(database, limit=3) for _ in range(2)]
    ids = [f"{number:026}" for number in range(10)]
    creating = [stores[index % 2].create(prediction(each), attached=False) for index, each in enumerate(ids)]
    results = await asyncio.gather(*creating, return_exceptions=True)
    assert [isinstance(result, PoolFull) for result in results].count(False) == 3


async def test_another_process_ends_a_prediction(database: Database) -> None:
    owner, other = await make_running(database, A), make_store(database)
    stopped: list[str] = []
    owner.on_lost = stopped.append
    assert await other.finish(A, cancel)
    await owner.renew_leases()
    assert stopped == [A]
    assert not await owner.finish(A, succeed, release=True)
    assert (await owner.get(A)).status == "canceled"


async def test_only_the_holder_of_the_lease_may_finish_with_release(database: Database) -> None:
    await make_running(database, A)
    assert not await make_store(database).finish(A, succeed, release=True)
    assert (await stored(database, A)).status == "starting"


async def test_expired_lease_is_claimed_once_and_fences_its_old_holder(database: Database) -> None:
    clock = FakeClock()
    owner, first, second = (make_store(database, clock) for _ in range(3))
    stopped: list[str] = []
    owner.on_lost = stopped.append
    await owner.create(prediction(A), attached=False)
    assert await first.claim(10) == []
    clock.elapsed_s += LEASE_S + 1
    claims = [*await first.claim(10), *await second.claim(10)]
    assert [(claim.prediction.id, claim.lease.number, claim.losses) for claim in claims] == [(A, 2, 0)]
    assert not await owner.finish(A, cancel)
    assert stopped == [A]
    assert await first.finish(A, succeed, release=True)
    assert (await stored(database, A)).status == "succeeded"


async def test_renewed_lease_is_not_claimed(database: Database) -> None:
    clock = FakeClock()
    owner, other = make_store(database, clock), make_store(database, clock)
    await owner.create(prediction(A), attached=False)
    for _ in range(3):
        clock.elapsed_s += LEASE_S - 1
        assert await owner.renew_leases() == []
        assert await other.claim(10) == []


async def test_loss_of_a_process_that_generates_is_counted(database: Database) -> None:
    clock = FakeClock()
    stores = [make_store(database, clock) for _ in range(3)]
    await stores[0].create(prediction(A).started(NOON), attached=True)
    for number, store in enumerate(stores[1:], 1):
        clock.elapsed_s += LEASE_S + 1
        (claim,) = await store.claim(10)
        assert (claim.losses, claim.attached) == (number, True)
        await store.update(A, lambda each: each.started(NOON))
        while not (await stored(database, A)).is_generated:
            await asyncio.sleep(0.01)
    assert await stores[2].count_loss(A) == 3


async def test_loss_of_a_process_in_which_the_prediction_waited_again_is_not_counted(database: Database) -> None:
    clock = FakeClock()
    stores = [make_store(database, clock) for _ in range(3)]
    await stores[0].create(prediction(A).started(NOON), attached=False)
    for store in stores[1:]:
        clock.elapsed_s += LEASE_S + 1
        (claim,) = await store.claim(10)
        assert claim.losses == 1
        assert claim.prediction.status == "processing"


async def test_loss_of_a_process_that_loads_input_images_is_counted(database: Database) -> None:
    clock = FakeClock()
    owner, other = make_store(database, clock), make_store(database, clock)
    unfetched = plan().model_copy(update={"size": None})
    await owner.create(prediction(A).with_plan(unfetched), attached=False)
    await owner.create(prediction(B).with_plan(plan()), attached=False)
    clock.elapsed_s += LEASE_S + 1
    assert {claim.prediction.id: claim.losses for claim in await other.claim(10)} == {A: 1, B: 0}


async def test_predictions_that_were_lost_before_are_claimed_last(database: Database) -> None:
    clock = FakeClock()
    owner, other = make_store(database, clock), make_store(database, clock)
    await owner.create(prediction(A).started(NOON), attached=False)
    await owner.create(prediction(B), attached=False)
    clock.elapsed_s += LEASE_S + 1
    assert [claim.losses for claim in await other.claim(1)] == [1]
    clock.elapsed_s += LEASE_S + 1
    assert [claim.prediction.id for claim in await owner.claim(10)] == [B, A]


async def test_prediction_that_was_given_back_is_claimed_at_once_without_a_loss(database: Database) -> None:
    owner, other = make_store(database), make_store(database)
    await owner.create(prediction(A).started(NOON), attached=False)
    await owner.release(A)
    (claim,) = await other.claim(10)
    assert claim.losses == 0


async def test_place_of_a_canceled_prediction_of_a_lost_process_is_freed(database: Database) -> None:
    clock = FakeClock()
    owner, other = make_store(database, clock, 1), make_store(database, clock, 1)
    await owner.create(prediction(A), attached=False)
    await other.finish(A, cancel)
    assert await other.is_full()
    clock.elapsed_s += LEASE_S + 1
    await other.claim(10)
    assert not await other.is_full()


async def test_wait_for_change_ignores_changes_of_other_records(database: Database) -> None:
    store = await make_running(database, A, B)
    seen = await store.get(A)
    waiting = asyncio.create_task(store.wait_for_change(seen))
    await store.update(B, add_line)
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await store.update(A, add_line)
    assert (await asyncio.wait_for(waiting, 1)).logs == "a line\n"


async def test_change_in_another_process_wakes_every_waiter(database: Database) -> None:
    owner = await make_running(database, A)
    notifier = ChangeNotifier(database)
    other = PredictionStore(database, notifier, {POOL: 100})
    listening = asyncio.create_task(notifier.run())
    seen = await other.get(A)
    waiting = [asyncio.create_task(other.wait_for_change(seen)) for _ in range(3)]
    await asyncio.sleep(0.3)
    await owner.finish(A, succeed)
    records = await asyncio.wait_for(asyncio.gather(*waiting), 2)
    assert [record.status for record in records] == ["succeeded"] * 3
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def test_waiter_in_a_process_that_lost_its_lease_gets_the_end(database: Database) -> None:
    clock = FakeClock()
    owner, other = make_store(database, clock), make_store(database, clock)
    await owner.create(prediction(A), attached=False)
    for _ in range(3):
        seen = await owner.update(A, add_line)
    clock.elapsed_s += LEASE_S + 1
    await other.claim(10)
    await other.finish(A, succeed, release=True)
    await owner.renew_leases()
    record = await asyncio.wait_for(owner.wait_for_change(seen), 2)
    assert record.status == "succeeded"
    assert record.revision < seen.revision


async def test_pages_go_both_ways(database: Database) -> None:
    store = make_store(database)
    ids = [f"{number:026}" for number in range(5)]
    for number, each in enumerate(ids):
        created_at = NOON + timedelta(seconds=number // 2)
        await store.create(prediction(each).model_copy(update={"created_at": created_at}), attached=False)

    async def page(query: PageQuery) -> list[str]:
        return [record.id for record in await store.page(query)]

    assert await page(PageQuery(2)) == [ids[4], ids[3]]
    assert await page(PageQuery(2, older_than=ids[3])) == [ids[2], ids[1]]
    assert await page(PageQuery(2, newer_than=ids[0])) == [ids[2], ids[1]]
    later = NOON + timedelta(seconds=1)
    assert await page(PageQuery(9, created_after=later)) == [ids[4], ids[3], ids[2]]
    assert await page(PageQuery(9, created_before=later)) == [ids[1], ids[0]]
    with pytest.raises(NotFound):
        await page(PageQuery(2, older_than=A))


async def test_same_key_creates_one_prediction_also_if_the_pool_is_full(database: Database) -> None:
    first, second = make_store(database, limit=1), make_store(database, limit=1)
    assert await first.find_earlier(KEY, NO_OWNER) is None
    created = await first.create(prediction(A), attached=False, idempotency=KEY)
    assert await second.create(prediction(B), attached=False, idempotency=KEY) == created == prediction(A)
    assert await second.find_earlier(KEY, NO_OWNER) == created
    with pytest.raises(NotFound):
        await second.get(B)


async def test_owners_have_keys_of_their_own(database: Database) -> None:
    stores = [make_store(database) for _ in range(2)]
    owned = [prediction(id_).model_copy(update={"owner": owner}) for id_, owner in ((A, "one"), (B, "other"))]
    creating = [
        store.create(record, attached=False, idempotency=KEY) for store, record in zip(stores, owned, strict=True)
    ]
    assert await asyncio.gather(*creating) == owned
    assert await stores[0].find_earlier(KEY, "other") == owned[1]
    assert await stores[0].find_earlier(KEY, NO_OWNER) is None


async def test_key_of_another_request_is_an_error(database: Database) -> None:
    store, other = make_store(database), IdempotencyKey(KEY.key, "another hash")
    await store.create(prediction(A), attached=False, idempotency=KEY)
    with pytest.raises(IdempotencyKeyReused):
        await store.find_earlier(other, NO_OWNER)
    with pytest.raises(IdempotencyKeyReused):
        await store.create(prediction(B), attached=False, idempotency=other)


async def test_two_processes_create_one_prediction_with_one_key(database: Database) -> None:
    stores = [make_store(database) for _ in range(2)]
    ids = [f"{number:026}" for number in range(10)]
    creating = [
        stores[number % 2].create(prediction(each), attached=False, idempotency=KEY) for number, each in enumerate(ids)
    ]
    created = await asyncio.gather(*creating)
    assert len({record.id for record in created}) == 1
    assert len(await stores[0].page(PageQuery(99))) == 1


async def test_create_may_be_repeated_if_its_answer_was_lost(database: Database) -> None:
    store = make_store(database, limit=1)
    for _ in range(2):
        await store.create(prediction(A), attached=False)
    await store.update(A, add_line)
    assert (await store.get(A)).logs == "a line\n"


async def test_only_the_holder_reports_an_overdue_prediction(database: Database) -> None:
    clock = FakeClock()
    owner, other = make_store(database, clock), make_store(database, clock)
    deadline = NOON + timedelta(seconds=10)
    await owner.create(prediction(A).model_copy(update={"deadline": deadline}), attached=False)
    await owner.create(prediction(B), attached=False)
    clock.elapsed_s = 9
    assert owner.overdue() == []
    clock.elapsed_s = 10
    assert (owner.overdue(), other.overdue()) == ([A], [])
    await owner.finish(A, cancel)
    assert owner.overdue() == []


async def test_key_that_another_process_stores_at_the_same_time_is_found(database: Database) -> None:
    """The lock of a pool does not help, as the pools differ."""
    may_commit = threading.Event()
    other = prediction(B).model_copy(update={"plan": plan(pool=OTHER_POOL)})

    def insert(connection: Connection) -> None:
        rows.insert_prediction(connection, other, Lease(B, "another process", 1), 2**50, 1.0, False, KEY)
        wait_in_transaction(connection, may_commit)

    inserting = asyncio.create_task(database.write(insert))
    await asyncio.sleep(0.1)
    creating = asyncio.create_task(make_store(database).create(prediction(A), attached=False, idempotency=KEY))
    await asyncio.sleep(0.3)
    may_commit.set()
    await inserting
    assert await creating == other


async def test_pages_have_the_predictions_of_one_owner(database: Database) -> None:
    store = make_store(database)
    for prediction_id, owner in ((A, "one"), (B, "other"), (C, "one")):
        await store.create(prediction(prediction_id).model_copy(update={"owner": owner}), attached=False)

    async def page(query: PageQuery) -> list[str]:
        return [record.id for record in await store.page(query)]

    assert await page(PageQuery(9)) == [C, B, A]
    assert await page(PageQuery(9, owner="one")) == [C, A]
    assert await page(PageQuery(9, owner="one", older_than=C)) == [A]
    assert await page(PageQuery(9, owner="")) == []
    with pytest.raises(NotFound):
        await page(PageQuery(9, owner="one", older_than=B))


async def test_owner_has_a_limited_number_of_unfinished_predictions(database: Database) -> None:
    store, caller = make_store(database), Caller("one", max_in_flight=1)

    async def create(prediction_id: str, caller: Caller) -> None:
        record = prediction(prediction_id).model_copy(update={"owner": caller.owner})
        await store.create(record, attached=False, caller=caller)

    await create(A, caller)
    for call in (create(B, caller), store.check_capacity(POOL, caller)):
        with pytest.raises(TooManyPredictions) as error:
            await call
        assert error.value.limit == 1
    await create(B, Caller("other", max_in_flight=1))
    await store.finish(A, succeed, release=True)
    await create(C, caller)


async def test_processes_together_keep_the_limit_of_an_owner(database: Database) -> None:
    stores, caller = [make_store(database) for _ in range(2)], Caller("one", max_in_flight=1)
    records = [prediction(each).model_copy(update={"owner": "one"}) for each in (A, B)]
    results = await asyncio.gather(
        *(store.create(record, False, caller) for store, record in zip(stores, records, strict=True)),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["Prediction", "TooManyPredictions"]


def with_previews(prediction_id: str) -> Prediction:
    record = prediction(prediction_id)
    return record.model_copy(update={"plan": record.plan.model_copy(update={"previews": 3})})


async def make_previewed(database: Database, monkeypatch: pytest.MonkeyPatch) -> PredictionStore:
    """A store that runs A, with a preview of two images."""
    monkeypatch.setattr(leased_record, "STORE_PERIOD_S", 0.01)
    store = make_store(database)
    await store.create(with_previews(A), attached=False)
    for image in (0, 1):
        store.add_preview(A, Preview(image, 2, 4, b"image %d" % image))
    return store


async def stored_previews(database: Database, number: int) -> dict[int, StoredPreview]:
    """The rows of A as soon as there are this many."""
    async with asyncio.timeout(5):
        while len(rows := await database.read(lambda connection: read_previews(connection, A))) != number:
            await asyncio.sleep(0.01)
    return rows


async def test_previews_are_there_at_once_and_soon_in_other_processes(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await make_previewed(database, monkeypatch)
    expected = {0: StoredPreview(2, b"image 0"), 1: StoredPreview(2, b"image 1")}
    assert await store.previews(A) == expected
    assert [(each.index, each.step, each.preview_step) for each in (await store.get(A)).progress] == [
        (0, 2, 2),
        (1, 2, 2),
    ]
    await stored_previews(database, 2)
    other = make_store(database)
    assert await other.previews(A) == expected
    assert (await other.get(A)).progress == (await store.get(A)).progress
    store.add_preview(A, Preview(0, 3, 4, b"newer"))
    async with asyncio.timeout(5):
        while (await other.previews(A))[0] != StoredPreview(3, b"newer"):
            await asyncio.sleep(0.01)


async def test_preview_of_a_finished_image_is_removed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await make_previewed(database, monkeypatch)
    await stored_previews(database, 2)
    store.drop_preview(A, 0)
    assert set(await store.previews(A)) == {1}
    assert set(await stored_previews(database, 1)) == {1}
    assert [each.preview_step for each in (await stored(database, A)).progress] == [0, 2]


@pytest.mark.parametrize("ended_by", ["its process", "another process"])
async def test_previews_are_removed_when_the_prediction_ends(
    database: Database, monkeypatch: pytest.MonkeyPatch, ended_by: str
) -> None:
    store = await make_previewed(database, monkeypatch)
    await stored_previews(database, 2)
    await (store if ended_by == "its process" else make_store(database)).finish(A, cancel)
    assert await stored_previews(database, 0) == {}
    assert await make_store(database).previews(A) == {}


async def test_preview_after_the_end_is_dropped(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await make_previewed(database, monkeypatch)
    await store.finish(A, cancel)
    store.add_preview(A, Preview(0, 3, 4, b"late"))
    assert await store.previews(A) == {}


async def test_previews_of_a_lost_lease_are_not_stored(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr(leased_record, "STORE_PERIOD_S", 0.01)
    slow, other = make_store(database, clock), make_store(database, clock)
    await slow.create(with_previews(A), attached=False)
    clock.elapsed_s = LEASE_S + 1
    await other.claim(1)
    lost: list[str] = []
    slow.on_lost = lost.append
    slow.add_preview(A, Preview(0, 2, 4, b"of the slow process"))
    async with asyncio.timeout(5):
        while not lost:
            await asyncio.sleep(0.01)
    assert await other.previews(A) == {}
    assert await stored_previews(database, 0) == {}


async def test_predictions_without_previews_cost_no_statement(database: Database) -> None:
    store = await make_running(database, A)
    with recorded_statements() as statements:
        await store.finish(A, succeed, release=True)
    assert not [sql for sql, _ in statements if "previews" in sql]
