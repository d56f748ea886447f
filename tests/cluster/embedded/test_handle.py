"""The documented example: a process on the cluster draws by handle, awaited and streamed; one that leaves cancels."""

import subprocess
import sys
from pathlib import Path

from serve.launch.subprocess_service import ROOT, LocalService
from tests.cluster.client import SMALL, connect, contents, get, predict, size_of, until
from tests.cluster.probe import Probe

LEAVES = """
import sys, ray
from ray import serve
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
inputs = {"prompt": "left alone", "num_inference_steps": 50, "seed": 1}
states = serve.get_app_handle("flux").options(stream=True).stream.remote(inputs)
while next(states)["status"] != "processing":
    pass
states.cancel()
"""


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=True)


def test_the_example_draws_what_http_draws(service: LocalService, environment: dict[str, str], tmp_path: Path) -> None:
    address = ("--address", service.ray_address, "--out", str(tmp_path))
    printed = run(environment, "examples/python_handle.py", *address, "a red sailboat").stdout.splitlines()
    assert printed[0] == str(tmp_path / "out-0.webp")
    assert printed[1].split()[0] == "starting"
    assert printed[-1].split()[0] == "succeeded"
    picture = (tmp_path / "out-0.webp").read_bytes()
    assert size_of(picture) == (512, 512)
    inputs = {"prompt": "a red sailboat", "model": "schnell", "num_inference_steps": 4, "megapixels": "0.25", "seed": 1}
    assert contents(predict(service, **inputs)) == [picture]


def test_a_caller_who_leaves_cancels_the_prediction(
    service: LocalService, environment: dict[str, str], probe: Probe
) -> None:
    run(environment, "-c", LEAVES, service.ray_address)
    until(lambda: probe.stats("dev-bf16"), lambda stats: stats["images"] == 0, timeout_s=20)
    with connect(service) as client:
        left = client.get("/v1/predictions").json()["results"][0]
    assert left["input"]["prompt"] == "left alone"
    assert get(service, left["id"])["status"] == "canceled"
    assert predict(service, **SMALL, prompt="the slot is free")["status"] == "succeeded"
