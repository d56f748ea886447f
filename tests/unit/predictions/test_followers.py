"""Waiting for changes of a prediction: all clients of a process share its reads."""

import asyncio
from typing import Any, cast

import pytest

from serve.errors import DatabaseUnavailable, NotFound
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.followers import Followers
from serve.predictions.prediction import Prediction
from tests.fakes import NOON, prediction


class Records:
    """One record, or the error of reading it."""

    def __init__(self) -> None:
        self.result: Prediction | Exception = prediction()
        self.read_count = 0
        self.notifier = ChangeNotifier(cast(Any, None))
        self.followers = Followers(self.notifier, self._read)

    async def _read(self, prediction_id: str) -> Prediction:
        self.read_count += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    async def change(self, result: Prediction | Exception) -> None:
        self.result = result
        self.notifier.notify(prediction().id)
        await asyncio.sleep(0.01)


async def wait(records: Records, number: int) -> list[asyncio.Task[Prediction]]:
    waiting = [asyncio.create_task(records.followers.wait_for_change(prediction())) for _ in range(number)]
    await asyncio.sleep(0.01)
    return waiting


async def test_all_waiters_share_the_reads() -> None:
    records = Records()
    waiting = await wait(records, 1000)
    assert records.read_count == 1
    changed = prediction().with_log_lines("a line")
    await records.change(changed)
    assert await asyncio.gather(*waiting) == [changed] * 1000
    assert records.read_count == 2


async def test_nothing_is_read_once_all_waiters_have_left() -> None:
    records = Records()
    waiting = await wait(records, 3)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await records.change(prediction().canceled(NOON))
    assert records.read_count == 1


async def test_waiter_that_leaves_does_not_stop_the_others() -> None:
    records = Records()
    first, second = await wait(records, 2)
    first.cancel()
    await records.change(prediction().canceled(NOON))
    assert (await second).status == "canceled"


async def test_waiters_wait_while_the_database_is_away() -> None:
    records = Records()
    records.result = DatabaseUnavailable("down")
    [waiting] = await wait(records, 1)
    assert not waiting.done()
    await records.change(prediction().canceled(NOON))
    assert (await waiting).status == "canceled"


async def test_removed_record_raises_not_found() -> None:
    records = Records()
    waiting = await wait(records, 2)
    await records.change(NotFound("gone"))
    for task in waiting:
        with pytest.raises(NotFound):
            await task


async def test_end_after_a_take_over_is_noticed_if_the_record_has_as_many_changes_as_before() -> None:
    """The changes that the lost process had not stored are made by another one again."""
    records = Records()
    records.result = unstored = prediction().with_log_lines("a line")
    waiting = asyncio.create_task(records.followers.wait_for_change(unstored))
    await asyncio.sleep(0.01)
    ended = prediction().canceled(NOON)
    assert ended.revision == unstored.revision
    await records.change(ended)
    assert await asyncio.wait_for(waiting, 1) == ended


async def test_ended_record_is_returned_even_if_it_has_fewer_changes_than_the_client_has_seen() -> None:
    records = Records()
    records.result = prediction().canceled(NOON)
    seen = prediction().with_log_lines("a").with_log_lines("b")
    assert await asyncio.wait_for(records.followers.wait_for_change(seen), 1) == records.result
