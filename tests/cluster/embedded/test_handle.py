"""Predictions through a Ray Serve handle, as in the programs in `examples/`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve.launch.subprocess_service import ROOT, LocalService
from tests.cluster.client import SMALL, connect, contents, finish, get, predict, size_of, until
from tests.cluster.probe import Probe

CONNECT = """
import json, os, sys, time, ray
from ray import serve
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
handle = serve.get_app_handle("flux")
inputs = {"prompt": sys.argv[2], "num_inference_steps": 50, "seed": 1}
owner = [ray.put(None)]

def wait_until_processing():
    while handle.list.remote().result()["results"][0]["status"] != "processing":
        time.sleep(0.2)
"""

LEAVE = {
    "cancelled stream": """
states = handle.options(stream=True).stream.remote(inputs)
while next(states)["status"] != "processing":
    pass
states.cancel()
""",
    "abandoned stream of a process that exits": """
states = handle.options(stream=True).stream.remote(inputs, owner=owner)
while next(states)["status"] != "processing":
    pass
""",
    "killed process": """
response = handle.predict.remote(inputs, owner=owner)
wait_until_processing()
os.kill(os.getpid(), 9)
""",
    "timeout of the caller": """
sys.path.append("examples")
import python_handle
try:
    python_handle.predict(handle, inputs, 5)
except TimeoutError:
    print("timed out")
""",
    "timeout of the service": """
response = handle.predict.remote(inputs | {"num_outputs": 4}, cancel_after="5s")
print(response.result(timeout_s=60)["status"])
""",
}

CALL_WRONGLY = """
calls = [
    ("predict", {"inputs": {"promt": "a boat"}}),
    ("create", {"inputs": {"prompt": "a boat", "image": b"bytes"}}),
    ("create", {"inputs": ["a boat"]}),
    ("create", {"inputs": {"prompt": "a boat"}, "version": "unknown"}),
    ("create", {"inputs": {"prompt": "a boat"}, "cancel_after": "1s"}),
    ("create", {"inputs": {"prompt": "a boat"}, "idempotency_key": "a key"}),
    ("predict", {"inputs": {"prompt": "a boat"}, "owner": ray.put(None)}),
    ("get", {"prediction_id": "unknown"}),
    ("get", {"prediction_id": 1}),
    ("cancel", {"prediction_id": "unknown"}),
    ("wait", {"prediction_id": "unknown"}),
    ("wait", {"prediction_id": "unknown", "timeout_s": -1}),
    ("list", {"cursor": "unknown"}),
    ("list", {"created_after": "yesterday"}),
]
for method, arguments in calls:
    try:
        print(getattr(handle, method).remote(**arguments).result(timeout_s=30))
    except Exception as error:
        built_in = [each.__name__ for each in (ValueError, LookupError) if isinstance(error, each)]
        print(json.dumps([method, built_in, error.problem, error.cause.args]))
created = handle.create.remote(inputs).result()
try:
    handle.wait.remote(created["id"], timeout_s=0.1).result()
except TimeoutError:
    print(json.dumps(created["id"]))
handle.cancel.remote(created["id"]).result()
"""


def run_python(
    environment: dict[str, str], *arguments: str, check: bool = True, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=check
    )


def test_example_generates_the_same_image_as_http(
    service: LocalService, environment: dict[str, str], tmp_path: Path
) -> None:
    address = ("--address", service.ray_address, "--out", str(tmp_path))
    output_lines = run_python(environment, "examples/python_handle.py", *address, "a red sailboat").stdout.splitlines()
    assert output_lines[0] == str(tmp_path / "out-0.webp")
    assert output_lines[1].split()[0] == "starting"
    assert output_lines[-2].split()[0] == "succeeded"
    status, created_id = output_lines[-1].split()
    assert status == "succeeded"
    image_file = (tmp_path / "out-0.webp").read_bytes()
    assert size_of(image_file) == (512, 512)
    inputs = {"prompt": "a red sailboat", "model": "schnell", "num_inference_steps": 4, "megapixels": "0.25", "seed": 1}
    assert contents(predict(service, **inputs)) == [image_file] == contents(get(service, created_id))


def test_async_example_runs(service: LocalService, environment: dict[str, str]) -> None:
    arguments = ("--address", service.ray_address, "a red sailboat", "a blue house")
    lines = run_python(environment, "examples/python_handle_async.py", *arguments).stdout.splitlines()
    assert lines[:2] == ["succeeded a red sailboat", "succeeded a blue house"]
    assert [line.split()[0] for line in lines[-3:-1]] == ["succeeded", "canceled"]
    assert get(service, lines[-2].split()[1])["status"] == "canceled"


@pytest.mark.parametrize("way", LEAVE)
def test_leaving_cancels_an_attached_prediction(
    way: str, service: LocalService, environment: dict[str, str], probe: Probe
) -> None:
    run_python(environment, "-c", CONNECT + LEAVE[way], service.ray_address, way, check=way != "killed process")
    until(lambda: probe.stats("dev-bf16"), lambda stats: stats["images"] == 0, timeout_s=20)
    with connect(service) as client:
        prediction = client.get("/v1/predictions").json()["results"][0]
    assert prediction["input"]["prompt"] == way
    assert finish(service, prediction["id"])["status"] == "canceled"
    assert predict(service, **SMALL, prompt="the slot is free")["status"] == "succeeded"


def test_errors_need_no_package_on_the_path(service: LocalService, environment: dict[str, str], tmp_path: Path) -> None:
    without_package = {key: value for key, value in environment.items() if key != "PYTHONPATH"}
    program = CONNECT + CALL_WRONGLY
    result = run_python(without_package, "-c", program, service.ray_address, "waited for", folder=tmp_path)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    expected: list[tuple[str, str, int, str | None]] = [
        ("predict", "ValueError", 422, "input.prompt"),
        ("create", "ValueError", 422, "input.image"),
        ("create", "ValueError", 422, "inputs"),
        ("create", "ValueError", 422, None),
        ("create", "ValueError", 422, "Cancel-After"),
        ("create", "ValueError", 422, "Idempotency-Key"),
        ("predict", "ValueError", 422, "owner"),
        ("get", "LookupError", 404, None),
        ("get", "ValueError", 422, "prediction_id"),
        ("cancel", "LookupError", 404, None),
        ("wait", "LookupError", 404, None),
        ("wait", "ValueError", 422, "timeout_s"),
        ("list", "LookupError", 404, None),
        ("list", "ValueError", 422, "created_after"),
    ]
    for (method, built_in, problem, arguments), (name, error, status, field) in zip(lines[:-1], expected, strict=True):
        assert (method, built_in, problem["status"]) == (name, [error], status)
        assert arguments == [problem["detail"]]
        assert field is None or field in fields_of(problem)
    assert get(service, lines[-1])["input"]["prompt"] == "waited for"


def fields_of(problem: dict[str, Any]) -> list[str]:
    return [each["field"] for each in problem["invalid_fields"]]
