"""Removal of old predictions."""

import pytest

from serve.database.connection import Database
from serve.errors import NotFound
from serve.predictions import retention
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.retention import Retention
from serve.predictions.store import PredictionStore
from tests.fakes import FakeClock, prediction

IDS = [f"{number:026}" for number in range(5)]
DATA_MAX_AGE_S, RECORD_MAX_AGE_S = 60, 600


async def make_predictions(database: Database, clock: FakeClock) -> PredictionStore:
    """All have ended but the last."""
    store = PredictionStore(database, ChangeNotifier(database), {prediction().plan.pool: 100}, clock.now)
    for each in IDS:
        await store.create(prediction(each).with_log_lines("a line"), attached=False)
    for each in IDS[:-1]:
        await store.finish(each, lambda record: record.succeeded(clock.now()), release=True)
    return store


async def test_data_is_removed_first_and_then_the_record(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    clock = FakeClock()
    store = await make_predictions(database, clock)
    sweeper = Retention(database, DATA_MAX_AGE_S, RECORD_MAX_AGE_S, clock.now)
    clock.elapsed_s = DATA_MAX_AGE_S - 1
    await sweeper.sweep()
    assert not any([(await store.get(each)).data_removed for each in IDS])
    clock.elapsed_s = DATA_MAX_AGE_S + 1
    await sweeper.sweep()
    for each in IDS[:-1]:
        record = await store.get(each)
        assert (record.data_removed, record.inputs, record.logs, record.plan.prompt) == (True, {}, "", "")
        assert record.status == "succeeded"
    assert (await store.get(IDS[-1])).inputs
    clock.elapsed_s = RECORD_MAX_AGE_S + 1
    await sweeper.sweep()
    for each in IDS[:-1]:
        with pytest.raises(NotFound):
            await store.get(each)
    assert not (await store.get(IDS[-1])).ended
