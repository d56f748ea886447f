"""Pools grow under load, shrink without it, and come back from nothing."""

from collections.abc import Iterator
from typing import Any

import pytest

from serve.launch.subprocess_service import LocalService, local_service
from tests.cluster.client import SMALL, cancel, contents, create, finish, predict, until
from tests.cluster.probe import Probe

ROUNDS = 3
WAITING = 16
ENOUGH = 4
"""As many are drawn to their end; the others only had to wait."""


@pytest.fixture(scope="module")
def service(environment: dict[str, str]) -> Iterator[LocalService]:
    """A pool that may have no replica, one that may have two, and none of the third."""
    quick: dict[str, float] = {
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
        for key, value in (quick | scaling).items()
    }
    settings |= {f"pools.{pool}.warmup_sizes": "[[512, 512]]" for pool in bounds}
    settings |= {f"pools.{pool}.num_cpus": 0.2 for pool in bounds}
    assignments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with local_service(*assignments, environment=environment) as running:
        yield running


def test_a_pool_of_no_replicas_answers_and_returns_to_none(service: LocalService, probe: Probe) -> None:
    for _ in range(ROUNDS):
        until(lambda: probe.replicas("schnell"), lambda count: count == 0)
        prediction = predict(service, **SMALL, prompt="from nothing", model="schnell")
        assert prediction["metrics"]["pool"] == "schnell"
        assert len(contents(prediction)) == 1
    until(lambda: probe.replicas("schnell"), lambda count: count == 0)


def test_a_pool_grows_to_two_under_16_waiting_requests_and_back(service: LocalService, probe: Probe) -> None:
    for _ in range(ROUNDS):
        until(lambda: probe.replicas("dev-bf16"), lambda count: count == 1)
        asked: dict[str, Any] = {**SMALL, "num_inference_steps": 50}
        waiting = [create(service, **asked, prompt=f"{number}")["id"] for number in range(WAITING)]
        until(lambda: probe.replicas("dev-bf16"), lambda count: count == 2)
        for prediction_id in waiting[ENOUGH:]:
            cancel(service, prediction_id)
        for prediction_id in waiting[:ENOUGH]:
            assert len(contents(finish(service, prediction_id))) == 1
    until(lambda: probe.replicas("dev-bf16"), lambda count: count == 1)
