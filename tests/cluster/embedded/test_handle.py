"""Predictions through a Ray Serve handle, as in `examples/python_handle.py`."""

import subprocess
import sys
from pathlib import Path

from serve.launch.subprocess_service import ROOT, LocalService
from tests.cluster.client import SMALL, connect, contents, get, predict, size_of, until
from tests.cluster.probe import Probe

STREAM_AND_CANCEL = """
import sys, ray
from ray import serve
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
inputs = {"prompt": "canceled by its caller", "num_inference_steps": 50, "seed": 1}
states = serve.get_app_handle("flux").options(stream=True).stream.remote(inputs)
while next(states)["status"] != "processing":
    pass
states.cancel()
"""


def run_python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=True)


def test_example_generates_the_same_image_as_http(
    service: LocalService, environment: dict[str, str], tmp_path: Path
) -> None:
    address = ("--address", service.ray_address, "--out", str(tmp_path))
    output_lines = run_python(environment, "examples/python_handle.py", *address, "a red sailboat").stdout.splitlines()
    assert output_lines[0] == str(tmp_path / "out-0.webp")
    assert output_lines[1].split()[0] == "starting"
    assert output_lines[-1].split()[0] == "succeeded"
    image_file = (tmp_path / "out-0.webp").read_bytes()
    assert size_of(image_file) == (512, 512)
    inputs = {"prompt": "a red sailboat", "model": "schnell", "num_inference_steps": 4, "megapixels": "0.25", "seed": 1}
    assert contents(predict(service, **inputs)) == [image_file]


def test_cancelled_stream_cancels_the_prediction(
    service: LocalService, environment: dict[str, str], probe: Probe
) -> None:
    run_python(environment, "-c", STREAM_AND_CANCEL, service.ray_address)
    until(lambda: probe.stats("dev-bf16"), lambda stats: stats["images"] == 0, timeout_s=20)
    with connect(service) as client:
        prediction = client.get("/v1/predictions").json()["results"][0]
    assert prediction["input"]["prompt"] == "canceled by its caller"
    assert get(service, prediction["id"])["status"] == "canceled"
    assert predict(service, **SMALL, prompt="the slot is free")["status"] == "succeeded"
