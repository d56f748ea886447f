"""Stopping a service, the loss of its Ray, and a second service on its port."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from serve.launch.subprocess_service import ROOT, LocalService, local_service
from tests.cluster.client import SMALL, connect, create, get, until

INPUTS: dict[str, Any] = SMALL | {"prompt": "a red sailboat", "num_inference_steps": 20}


@pytest.fixture
def service(environment: dict[str, str]) -> Iterator[LocalService]:
    with local_service(environment=environment) as running:
        yield running


def test_second_service_is_refused_and_a_stopping_one_answers_polls_until_running_predictions_have_ended(
    service: LocalService, environment: dict[str, str]
) -> None:
    assert_second_service_is_refused(service, environment)
    prediction_id = create(service, **INPUTS)["id"]
    process = psutil.Process(service.process_id)
    os.kill(service.process_id, signal.SIGTERM)

    with connect(service) as client:
        refused = until(
            lambda: client.post("/v1/predictions", json={"input": {"prompt": "a cat"}}),
            lambda each: each.status_code != 201,
        )
        assert (refused.status_code, client.get("/health-check").json()["status"]) == (503, "DEFUNCT")
    assert until(lambda: get(service, prediction_id), lambda each: each["completed_at"])["status"] == "succeeded"
    assert process.wait(90) == 0


@pytest.mark.slow_cluster
def test_service_ends_when_its_raylet_is_lost(service: LocalService) -> None:
    process = psutil.Process(service.process_id)
    (raylet,) = [each for each in process.children(recursive=True) if each.name() == "raylet"]
    raylet.kill()

    assert process.wait(90) == 1
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{service.url}/health-check", timeout=5)


def assert_second_service_is_refused(service: LocalService, environment: dict[str, str]) -> None:
    port = service.url.rpartition(":")[2]
    second = subprocess.run(
        [sys.executable, "-m", "serve", "--port", port],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert len(second.stderr.strip().splitlines()) == 1
