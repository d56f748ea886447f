"""The in-memory prediction store."""

import asyncio

import pytest

from serve.errors import NotFound
from serve.predictions.prediction import Prediction
from serve.predictions.store import MemoryStore
from tests.fakes import NOON, FakeClock, prediction

A, B, C = (letter * 26 for letter in "abc")


def succeed(record: Prediction) -> Prediction:
    return record.succeeded(NOON)


def add_line(record: Prediction) -> Prediction:
    return record.with_log_lines("a line")


async def make_store(*ids: str, max_records: int = 100, clock: FakeClock | None = None) -> MemoryStore:
    """A store with a running prediction for each id; records expire 60 seconds after their end."""
    store = MemoryStore(max_records, max_age_s=60, clock=(clock or FakeClock()).now)
    for prediction_id in ids:
        await store.create(prediction(prediction_id))
    return store


async def test_unknown_id_raises_not_found() -> None:
    store = await make_store()
    for call in (store.get(A), store.update(A, add_line), store.wait_for_change(prediction(A))):
        with pytest.raises(NotFound, match=A):
            await call


async def test_ended_record_does_not_end_or_change_again() -> None:
    store = await make_store(A)
    assert await store.finish(A, lambda record: record.canceled(NOON)) is True
    assert await store.finish(A, succeed) is False
    assert (await store.update(A, add_line)).logs == ""
    assert (await store.get(A)).status == "canceled"


async def test_finish_returns_false_for_a_removed_record() -> None:
    store = await make_store(A, max_records=1)
    await store.finish(A, succeed)
    await store.create(prediction(B))
    assert await store.finish(A, succeed) is False


async def test_wait_for_change_ignores_changes_of_other_records() -> None:
    store = await make_store(A, B)
    seen = await store.get(A)
    waiting = asyncio.create_task(store.wait_for_change(seen))
    await store.update(B, add_line)
    await asyncio.sleep(0)
    assert not waiting.done()
    await store.update(A, add_line)
    assert (await asyncio.wait_for(waiting, 1)).logs == "a line\n"


async def test_wait_for_change_returns_at_once_if_the_record_is_already_newer() -> None:
    store = await make_store(A)
    seen = await store.get(A)
    await store.update(A, add_line)
    assert (await asyncio.wait_for(store.wait_for_change(seen), 1)).revision == 1


async def test_change_wakes_every_waiter() -> None:
    store = await make_store(A)
    seen = await store.get(A)
    waiting = [asyncio.create_task(store.wait_for_change(seen)) for _ in range(3)]
    await asyncio.sleep(0)
    await store.finish(A, succeed)
    records = await asyncio.wait_for(asyncio.gather(*waiting), 1)
    assert [record.status for record in records] == ["succeeded"] * 3


async def test_wait_for_change_returns_at_once_if_the_record_has_ended() -> None:
    store = await make_store(A)
    await store.finish(A, succeed)
    ended = await store.get(A)
    assert await asyncio.wait_for(store.wait_for_change(ended), 1) is ended


async def test_records_expire_by_the_time_since_their_end() -> None:
    clock = FakeClock()
    store = await make_store(A, B, clock=clock)
    clock.elapsed_s = 50
    await store.finish(A, succeed)
    clock.elapsed_s = 110
    assert (await store.get(A)).status == "succeeded"
    clock.elapsed_s = 110.1
    with pytest.raises(NotFound):
        await store.get(A)
    clock.elapsed_s = 10_000
    assert (await store.get(B)).status == "starting", "running records never expire"


async def test_store_beyond_its_limit_removes_the_record_that_ended_first() -> None:
    store = await make_store(A, B, max_records=2)
    await store.finish(B, succeed)
    await store.finish(A, succeed)
    await store.create(prediction(C))
    with pytest.raises(NotFound):
        await store.get(B)
    assert [(await store.get(each)).status for each in (A, C)] == ["succeeded", "starting"]


async def test_store_beyond_its_limit_keeps_running_records() -> None:
    store = await make_store(A, B, C, max_records=1)
    assert [(await store.get(each)).status for each in (A, B, C)] == ["starting"] * 3
