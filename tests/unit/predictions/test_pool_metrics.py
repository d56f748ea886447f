"""The load of pools, with SQLite and PostgreSQL."""

from datetime import timedelta

import pytest

from serve import telemetry
from serve.database.connection import Database
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.pool_metrics import PoolMetrics
from serve.predictions.prediction import Prediction
from serve.predictions.store import PredictionStore
from tests.fakes import NOON, FakeClock, plan, prediction
from tests.metrics import RecordedMetrics

POOL, IDLE = "dev-bf16", "schnell"
LIMITS = {POOL: 8, IDLE: 4}


def created(letter: str, seconds: float) -> Prediction:
    return prediction(letter * 26).model_copy(update={"created_at": NOON + timedelta(seconds=seconds), "plan": plan()})


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(100.0)


@pytest.fixture
def store(database: Database, clock: FakeClock) -> PredictionStore:
    return PredictionStore(database, ChangeNotifier(database), LIMITS, clock.now)


async def test_idle_pools_have_no_load(database: Database, clock: FakeClock, metrics: RecordedMetrics) -> None:
    await PoolMetrics(database, LIMITS, clock.now).update()
    assert metrics.values[telemetry.POOL_LIMIT.name] == {(POOL,): 8, (IDLE,): 4}
    assert not metrics.increased(telemetry.POOL_PREDICTIONS)
    assert metrics.values[telemetry.OUTSTANDING_SECONDS.name] == {(POOL,): 0, (IDLE,): 0}
    assert metrics.values[telemetry.OLDEST_WAITING_SECONDS.name] == {(POOL,): 0, (IDLE,): 0}


async def test_load_is_that_of_unfinished_predictions(
    database: Database, store: PredictionStore, clock: FakeClock, metrics: RecordedMetrics
) -> None:
    for letter, seconds in (("a", 10.0), ("b", 20.0), ("c", 70.0), ("d", 95.0)):
        await store.create(created(letter, seconds), attached=False)
    started, ended = NOON + timedelta(seconds=20), NOON + timedelta(seconds=50)
    await store.finish("a" * 26, lambda each: each.started(started).succeeded(ended), release=True)
    await store.update("b" * 26, lambda each: each.started(NOON))
    await store._writer._store([store._held["b" * 26]])
    await PoolMetrics(database, LIMITS, clock.now).update()
    assert metrics.increased(telemetry.POOL_PREDICTIONS) == {(POOL, "waiting"): 2, (POOL, "running"): 1}
    assert metrics.value(telemetry.OLDEST_WAITING_SECONDS, POOL) == pytest.approx(30)
    # The pool took 30 s for one of four equal predictions.
    assert metrics.value(telemetry.OUTSTANDING_SECONDS, POOL) == pytest.approx(90)
    assert metrics.value(telemetry.OUTSTANDING_SECONDS, IDLE) == 0
