"""Helpers for HTTP requests to a service under test."""

import base64
import io
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx
from PIL import Image

from serve.launch.subprocess_service import LocalService

Value = TypeVar("Value")

SMALL = {"megapixels": "0.25", "num_inference_steps": 2, "output_format": "png", "disable_safety_checker": True}
"""Inputs for tests that do not depend on the image size: as fast as the API allows, and lossless."""


def as_arguments(assignments: Mapping[str, object]) -> tuple[str, ...]:
    """The arguments of the service for settings by their names."""
    return tuple(part for key, value in assignments.items() for part in ("--set", f"{key}={value}"))


def connect(service: LocalService, timeout_s: float = 120) -> httpx.Client:
    return httpx.Client(base_url=service.url, timeout=timeout_s)


def create(service: LocalService, wait: bool = False, **inputs: Any) -> dict[str, Any]:
    """Creates a prediction. With `wait`, the request blocks for up to a minute until the prediction ends."""
    headers = {"Prefer": "wait=60"} if wait else {}
    with connect(service) as client:
        response = client.post("/v1/predictions", json={"input": inputs}, headers=headers)
        assert response.status_code == 201, response.text
        return dict(response.json())


def get(service: LocalService, prediction_id: str) -> dict[str, Any]:
    with connect(service) as client:
        return dict(client.get(f"/v1/predictions/{prediction_id}").raise_for_status().json())


def cancel(service: LocalService, prediction_id: str) -> dict[str, Any]:
    with connect(service) as client:
        return dict(client.post(f"/v1/predictions/{prediction_id}/cancel").raise_for_status().json())


def finish(service: LocalService, prediction_id: str, timeout_s: float = 120) -> dict[str, Any]:
    """Polls until the prediction has ended, and returns it."""
    return until(
        lambda: get(service, prediction_id),
        lambda prediction: prediction["status"] not in ("starting", "processing"),
        timeout_s,
    )


def predict(service: LocalService, **inputs: Any) -> dict[str, Any]:
    """Creates a prediction and returns it after it has ended."""
    return finish(service, create(service, wait=True, **inputs)["id"])


def contents(prediction: dict[str, Any]) -> list[bytes]:
    """The output files of a succeeded prediction whose outputs are `data:` URIs."""
    assert prediction["status"] == "succeeded", prediction["error"]
    return [base64.b64decode(uri.partition(",")[2]) for uri in prediction["output"]]


def size_of(content: bytes) -> tuple[int, int]:
    """Width and height of an image file."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return image.size


def white_png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(file, "png")
    return file.getvalue()


def until(get_value: Callable[[], Value], condition: Callable[[Value], bool], timeout_s: float = 60) -> Value:
    """Polls `get_value` until `condition` is true of the value, and returns it. Fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = get_value()
        if condition(value):
            return value
        assert time.monotonic() < deadline, f"still {value!r} after {timeout_s:g} s"
        time.sleep(0.1)
