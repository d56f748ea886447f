"""Records in memory."""

import asyncio

import pytest

from serve.errors import NotFound
from serve.predictions.prediction import Prediction
from serve.predictions.store import MemoryStore
from tests.fakes import NOON, FakeClock, prediction

A, B, C = (letter * 26 for letter in "abc")


def succeeded(record: Prediction) -> Prediction:
    return record.succeeded(NOON)


def noted(record: Prediction) -> Prediction:
    return record.with_log_lines("a line")


async def store_of(*ids: str, max_records: int = 100, clock: FakeClock | None = None) -> MemoryStore:
    store = MemoryStore(max_records, max_age_s=60, clock=(clock or FakeClock()).now)
    for prediction_id in ids:
        await store.create(prediction(prediction_id))
    return store


async def test_an_unknown_id_is_not_found() -> None:
    store = await store_of()
    for asking in (store.get(A), store.update(A, noted), store.wait_for_change(prediction(A))):
        with pytest.raises(NotFound, match="may have expired"):
            await asking


async def test_the_first_end_stands() -> None:
    store = await store_of(A)
    assert await store.finish(A, lambda record: record.canceled(NOON)) is True
    assert await store.finish(A, succeeded) is False
    assert (await store.update(A, noted)).logs == ""
    assert (await store.get(A)).status == "canceled"


async def test_what_has_ended_and_left_does_not_end_again() -> None:
    store = await store_of(A, max_records=1)
    await store.finish(A, succeeded)
    await store.create(prediction(B))
    assert await store.finish(A, succeeded) is False


async def test_a_waiter_is_woken_by_the_next_change_and_by_no_other_record() -> None:
    store = await store_of(A, B)
    seen = await store.get(A)
    waiting = asyncio.create_task(store.wait_for_change(seen))
    await store.update(B, noted)
    await asyncio.sleep(0)
    assert not waiting.done()
    await store.update(A, noted)
    assert (await asyncio.wait_for(waiting, 1)).logs == "a line\n"


async def test_a_change_that_came_before_the_waiter_is_seen_at_once() -> None:
    store = await store_of(A)
    seen = await store.get(A)
    await store.update(A, noted)
    assert (await asyncio.wait_for(store.wait_for_change(seen), 1)).revision == 1


async def test_every_waiter_is_woken() -> None:
    store = await store_of(A)
    seen = await store.get(A)
    waiting = [asyncio.create_task(store.wait_for_change(seen)) for _ in range(3)]
    await asyncio.sleep(0)
    await store.finish(A, succeeded)
    assert [each.status for each in await asyncio.wait_for(asyncio.gather(*waiting), 1)] == ["succeeded"] * 3


async def test_nobody_waits_for_a_change_of_what_has_ended() -> None:
    store = await store_of(A)
    await store.finish(A, succeeded)
    ended = await store.get(A)
    assert await asyncio.wait_for(store.wait_for_change(ended), 1) is ended


async def test_records_leave_by_their_age_after_their_end_and_running_ones_never() -> None:
    clock = FakeClock()
    store = await store_of(A, B, clock=clock)
    clock.elapsed_s = 50
    await store.finish(A, succeeded)
    clock.elapsed_s = 110
    assert (await store.get(A)).status == "succeeded"
    clock.elapsed_s = 110.1
    with pytest.raises(NotFound):
        await store.get(A)
    clock.elapsed_s = 10_000
    assert (await store.get(B)).status == "starting"


async def test_the_record_that_ended_first_leaves_when_there_are_too_many() -> None:
    store = await store_of(A, B, max_records=2)
    await store.finish(B, succeeded)
    await store.finish(A, succeeded)
    await store.create(prediction(C))
    with pytest.raises(NotFound):
        await store.get(B)
    assert [(await store.get(each)).status for each in (A, C)] == ["succeeded", "starting"]


async def test_running_records_stay_when_there_are_too_many() -> None:
    store = await store_of(A, B, C, max_records=1)
    assert [(await store.get(each)).status for each in (A, B, C)] == ["starting"] * 3
