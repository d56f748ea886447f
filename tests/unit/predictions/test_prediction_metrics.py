from datetime import timedelta
from typing import Any

import pytest

from serve import telemetry
from serve.errors import (
    AllImagesFlagged,
    DatabaseUnavailable,
    InvalidInput,
    LorasMissing,
    NotReady,
    PoolFull,
    ReplicaLost,
    StorageUnavailable,
    TooManyPredictions,
)
from serve.events import ImageFlagged, Started
from serve.predictions.prediction import Prediction
from serve.predictions.prediction_metrics import record_end, record_refusals
from tests.app_factory import make_app
from tests.fakes import DONE, NOON, ONE_IMAGE, WEBP, FakePool, prediction
from tests.metrics import RecordedMetrics
from tests.unit.predictions.helpers import CAT, run_to_end

POOL = "dev-bf16"


def at(seconds: float) -> Any:
    return NOON + timedelta(seconds=seconds)


def test_end_records_outcome_and_times(metrics: RecordedMetrics) -> None:
    record = prediction().started(at(2.0)).with_stage_times({"queue": 1500.0, "text": 250.0, "store": 5.0})
    record_end(record.succeeded(at(10.0)))
    assert metrics.increased(telemetry.PREDICTIONS) == {(POOL, "succeeded"): 1}
    assert metrics.observed(telemetry.TOTAL_SECONDS, POOL, "succeeded") == [10]
    assert metrics.observed(telemetry.FIRST_STEP_SECONDS, POOL) == [2]
    assert metrics.observed(telemetry.QUEUE_SECONDS, POOL) == [1.5]
    assert metrics.observations[telemetry.STAGE_SECONDS.name] == {(POOL, "text"): [0.25], (POOL, "store"): [0.005]}


@pytest.mark.parametrize("ended", [prediction().canceled(at(3.0)), prediction().failed(at(3.0), "an error")])
def test_prediction_that_ends_before_its_first_step_has_only_a_total_time(
    metrics: RecordedMetrics, ended: Prediction
) -> None:
    record_end(ended)
    assert metrics.observations.keys() == {telemetry.TOTAL_SECONDS.name}
    assert metrics.observed(telemetry.TOTAL_SECONDS, POOL, ended.status) == [3]


async def test_prediction_counts_images_and_bytes(metrics: RecordedMetrics) -> None:
    assert (await run_to_end(make_app(FakePool(ONE_IMAGE)), CAT)).status == "succeeded"
    assert metrics.increased(telemetry.PREDICTIONS) == {(POOL, "succeeded"): 1}
    assert metrics.increased(telemetry.IMAGES) == {(POOL,): 1}
    assert metrics.increased(telemetry.OUTPUT_BYTES) == {(POOL,): len(WEBP)}
    stages = {stage for _, stage in metrics.observations[telemetry.STAGE_SECONDS.name]}
    assert stages == {"plan", "text", "denoise", "store"}
    for metric in (telemetry.FAILURES, telemetry.REFUSED, telemetry.RETRIES, telemetry.FLAGGED):
        assert not metrics.increased(metric)


async def test_counters_of_all_pools_are_exported_before_they_count(metrics: RecordedMetrics) -> None:
    make_app(FakePool(()))
    assert metrics.values[telemetry.PREDICTIONS.name][("schnell", "failed")] == 0
    assert metrics.values[telemetry.FAILURES.name][("schnell", "EngineFailed")] == 0
    assert metrics.values[telemetry.REFUSED.name][("schnell", "pool_full")] == 0


async def test_flagged_images_and_the_class_of_a_failure_are_counted(metrics: RecordedMetrics) -> None:
    assert (await run_to_end(make_app(FakePool((Started(), ImageFlagged(0), DONE))), CAT)).status == "failed"
    assert metrics.increased(telemetry.FLAGGED) == {(POOL,): 1}
    assert metrics.increased(telemetry.FAILURES) == {(POOL, AllImagesFlagged.__name__): 1}
    assert metrics.increased(telemetry.PREDICTIONS) == {(POOL, "failed"): 1}


@pytest.mark.parametrize(
    ("error", "lost", "reason"),
    [(ReplicaLost(True), "replica", "EngineFailed"), (LorasMissing(("key",)), "lora", "LorasMissing")],
)
async def test_repeated_calls_are_counted(metrics: RecordedMetrics, error: Exception, lost: str, reason: str) -> None:
    assert (await run_to_end(make_app(FakePool((error,))), CAT)).status == "failed"
    assert metrics.increased(telemetry.RETRIES).keys() == {(POOL, lost)}
    assert metrics.increased(telemetry.FAILURES) == {(POOL, reason): 1}


async def test_prediction_that_was_cancelled_is_no_failure(metrics: RecordedMetrics) -> None:
    app = make_app(FakePool((), may_start=False))
    accepted = await app.create(CAT)
    await app.service.cancel(accepted.id)
    await app.service.close(grace_s=1)
    assert metrics.increased(telemetry.PREDICTIONS) == {(POOL, "canceled"): 1}
    assert not metrics.increased(telemetry.FAILURES)


@pytest.mark.parametrize(
    ("error", "labels"),
    [
        (PoolFull("schnell", 3.0), {("schnell", "pool_full"): 1}),
        (TooManyPredictions(4, 3.0), {("none", "token_limit"): 1}),
        (NotReady("starting"), {("none", "not_ready"): 1}),
        (DatabaseUnavailable("refused"), {("none", "database"): 1}),
        (StorageUnavailable(), {("none", "storage"): 1}),
        (InvalidInput(()), {}),
    ],
)
async def test_requests_are_refused_by_pool_and_reason(
    metrics: RecordedMetrics, error: Exception, labels: dict[tuple[str, str], int]
) -> None:
    @record_refusals
    async def create() -> None:
        raise error

    with pytest.raises(type(error)):
        await create()
    assert metrics.increased(telemetry.REFUSED) == labels


async def test_service_counts_requests_that_it_refuses(metrics: RecordedMetrics) -> None:
    with pytest.raises(NotReady):
        await make_app(FakePool(()), opened=False).create(CAT)
    assert metrics.increased(telemetry.REFUSED) == {("none", "not_ready"): 1}
