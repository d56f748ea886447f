"""Records the metrics of predictions: ends, failures, and requests that are refused."""

import functools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Literal, ParamSpec, TypeVar, get_args

from serve import telemetry
from serve.errors import (
    DatabaseUnavailable,
    EngineFailed,
    LorasMissing,
    NotReady,
    OutputUploadFailed,
    PoolFull,
    ServiceError,
    StorageFailed,
    StorageUnavailable,
    TooManyPredictions,
)
from serve.predictions.prediction import Prediction

Lost = Literal["replica", "lora", "process"]

STAGES = ("plan", "fetch", "lora", "text", "encode_image", "denoise", "decode", "safety", "encode", "store")
"""All but `queue`, which has a metric of its own."""
OUTCOMES = ("succeeded", "failed", "canceled")
FAULTS: tuple[type[ServiceError], ...] = (EngineFailed, LorasMissing, OutputUploadFailed, StorageFailed)
"""Failures that are not due to the inputs of a prediction."""
NO_POOL = "none"
"""The request was refused before its pool was chosen, or whatever its pool."""
_REASONS: dict[type[ServiceError], str] = {
    PoolFull: "pool_full",
    TooManyPredictions: "token_limit",
    NotReady: "not_ready",
    DatabaseUnavailable: "database",
    StorageUnavailable: "storage",
}
_REFUSALS = tuple(_REASONS)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def export_pools(pools: Iterable[str]) -> None:
    """Exports the counters of each pool before they count, so that the first failure is an increase."""
    for pool in pools:
        for outcome in OUTCOMES:
            telemetry.PREDICTIONS.add(0, pool=pool, outcome=outcome)
        for lost in get_args(Lost):
            telemetry.RETRIES.add(0, pool=pool, lost=lost)
        for error in FAULTS:
            telemetry.FAILURES.add(0, pool=pool, reason=error.__name__)
        telemetry.REFUSED.add(0, pool=pool, reason=_REASONS[PoolFull])
        for counter in (telemetry.IMAGES, telemetry.FLAGGED, telemetry.OUTPUT_BYTES):
            counter.add(0, pool=pool)


def record_end(prediction: Prediction) -> None:
    """Records the outcome and the times of a prediction that has ended."""
    pool, outcome = prediction.plan.pool, prediction.status
    telemetry.PREDICTIONS.add(pool=pool, outcome=outcome)
    telemetry.TOTAL_SECONDS.observe(prediction.metrics["total_time"], pool=pool, outcome=outcome)
    if prediction.started_at is not None:
        wait_s = (prediction.started_at - prediction.created_at).total_seconds()
        telemetry.FIRST_STEP_SECONDS.observe(wait_s, pool=pool)
    if "queue" in prediction.stages_ms:
        telemetry.QUEUE_SECONDS.observe(prediction.stages_ms["queue"] / 1000, pool=pool)
    if outcome == "succeeded":
        for stage in STAGES:
            if stage in prediction.stages_ms:
                telemetry.STAGE_SECONDS.observe(prediction.stages_ms[stage] / 1000, pool=pool, stage=stage)


def record_failure(pool: str, error: ServiceError) -> None:
    telemetry.FAILURES.add(pool=pool, reason=type(error).__name__)


def record_retry(pool: str, lost: Lost) -> None:
    telemetry.RETRIES.add(pool=pool, lost=lost)


def record_refusals(
    create: Callable[Parameters, Coroutine[Any, Any, Result]],
) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    """Counts the errors of `create` that are the fault of the service, not of the caller."""

    @functools.wraps(create)
    async def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return await create(*args, **kwargs)
        except _REFUSALS as error:
            pool = error.pool if isinstance(error, PoolFull) else NO_POOL
            telemetry.REFUSED.add(pool=pool, reason=_REASONS[type(error)])
            raise

    return wrapper
