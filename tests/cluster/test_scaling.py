"""Pools scale up under load, scale down when idle, and start again from zero replicas."""

from collections.abc import Iterator
from typing import Any

import pytest

from serve.launch.subprocess_service import LocalService, local_service
from tests.cluster.client import SMALL, as_arguments, cancel, contents, create, finish, predict, until
from tests.cluster.probe import Probe

ROUNDS = 3
REQUESTS = 16
FINISHED_REQUESTS = 4
"""Number of requests that run to their end. The others only add load and are canceled."""


@pytest.fixture(scope="module")
def service(environment: dict[str, str]) -> Iterator[LocalService]:
    """`schnell` scales between 0 and 1 replicas, `dev-bf16` between 1 and 2; `dev-fp8` starts with none."""
    fast_scaling: dict[str, float] = {
        "metrics_interval_s": 0.5,
        "look_back_period_s": 1,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 2,
    }
    bounds: dict[str, dict[str, float]] = {
        "schnell": {"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1, "downscale_to_zero_delay_s": 2},
        "dev-bf16": {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 4},
        "dev-fp8": {"min_replicas": 0, "initial_replicas": 0},
    }
    settings: dict[str, object] = {
        f"pools.{pool}.scaling.{key}": value
        for pool, scaling in bounds.items()
        for key, value in (fast_scaling | scaling).items()
    }
    settings |= {f"pools.{pool}.warmup_sizes": "[[512, 512]]" for pool in bounds}
    settings |= {f"pools.{pool}.num_cpus": 0.2 for pool in bounds}
    assignments = as_arguments(settings)
    with local_service(*assignments, environment=environment) as running_service:
        yield running_service


def test_pool_scales_up_from_zero_and_back_to_zero(service: LocalService, probe: Probe) -> None:
    for _ in range(ROUNDS):
        until(lambda: probe.replicas("schnell"), lambda count: count == 0)
        prediction = predict(service, **SMALL, prompt="a boat", model="schnell")
        assert prediction["metrics"]["pool"] == "schnell"
        assert len(contents(prediction)) == 1
    until(lambda: probe.replicas("schnell"), lambda count: count == 0)


@pytest.mark.slow_cluster
def test_pool_scales_to_two_replicas_under_load_and_back_to_one(service: LocalService, probe: Probe) -> None:
    for _ in range(ROUNDS):
        until(lambda: probe.replicas("dev-bf16"), lambda count: count == 1)
        inputs: dict[str, Any] = {**SMALL, "num_inference_steps": 50}
        prediction_ids = [create(service, **inputs, prompt=f"{number}")["id"] for number in range(REQUESTS)]
        until(lambda: probe.replicas("dev-bf16"), lambda count: count == 2)
        for prediction_id in prediction_ids[FINISHED_REQUESTS:]:
            cancel(service, prediction_id)
        for prediction_id in prediction_ids[:FINISHED_REQUESTS]:
            assert len(contents(finish(service, prediction_id))) == 1
    until(lambda: probe.replicas("dev-bf16"), lambda count: count == 1)
