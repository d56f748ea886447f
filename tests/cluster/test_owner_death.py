"""A service that uses Ray's token: the examples with its printed address, and the loss of an ingress."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve.launch.subprocess_service import ROOT, LocalService, local_service
from tests.cluster.client import until
from tests.cluster.probe import Probe, start_probe

pytestmark = pytest.mark.slow_cluster

STEPS, IMAGES = 50, 4

CALL = """
import sys, ray
from ray import serve

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
inputs = {"prompt": "lost", "num_inference_steps": int(sys.argv[2]), "num_outputs": int(sys.argv[3])}
states = serve.get_app_handle("flux").options(stream=True).stream.remote(inputs)
while next(states)["status"] != "processing":
    pass
"""


@pytest.fixture(scope="module")
def environment(environment: dict[str, str]) -> dict[str, str]:
    """Ray's default, as users have it."""
    return {key: value for key, value in environment.items() if key != "RAY_AUTH_MODE"}


@pytest.fixture(scope="module")
def service(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    folder: Path = tmp_path_factory.mktemp("state")
    with local_service("--set", f"state_folder={folder}", environment=environment) as running_service:
        yield running_service


@pytest.fixture(scope="module")
def client_environment(environment: dict[str, str]) -> dict[str, str]:
    return environment | {"RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def probe(service: LocalService, client_environment: dict[str, str]) -> Iterator[Probe]:
    with start_probe(service, client_environment) as running_probe:
        yield running_probe


def run_python(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=True
    ).stdout


@pytest.mark.parametrize("example", ["python_handle.py", "python_handle_async.py"])
def test_example_connects_to_the_printed_address(
    example: str, service: LocalService, environment: dict[str, str], tmp_path: Path
) -> None:
    out = ("--out", str(tmp_path)) if example == "python_handle.py" else ()
    assert run_python(environment, f"examples/{example}", "--address", service.ray_address, *out, "a red sailboat")


def test_replica_stops_the_work_of_a_killed_ingress(
    service: LocalService, client_environment: dict[str, str], probe: Probe
) -> None:
    # The prediction of an attached call is not taken up: what the replica still does is the work of the lost ingress.
    before: dict[str, Any] = probe.stats("dev-bf16")
    run_python(client_environment, "-c", CALL, service.ray_address, str(STEPS), str(IMAGES))
    (ingress,) = [
        process
        for process in psutil.Process(service.process_id).children(recursive=True)
        if "flux:ingress" in " ".join(process.cmdline())
    ]
    ingress.kill()
    after = until(lambda: probe.stats("dev-bf16"), lambda stats: stats["images"] == 0, timeout_s=20)
    assert after["image_steps"] - before["image_steps"] < STEPS * IMAGES
