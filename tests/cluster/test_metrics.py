"""Prometheus reads every metric of a running service, its logs are JSON, and a prediction is traced to its steps."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve import telemetry
from serve.launch.subprocess_service import LocalService, free_port, local_service
from tests.cluster.client import SMALL, connect, finish, predict, until
from tests.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.prometheus import exported_names, expressions, metric_names

NOT_AFTER_ONE_PREDICTION = {
    *telemetry.GPU_MEMORY.exported_names,
    *telemetry.LORA_DOWNLOAD_SECONDS.exported_names,
}
"""They need a GPU, or a LoRA that is downloaded."""
TRACE_ID, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """What the service prints before it is ready."""
    return []


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as running:
        yield running


@pytest.fixture(scope="module")
def service(
    environment: dict[str, str], metrics_port: int, receiver: OtlpReceiver, lines: list[str]
) -> Iterator[LocalService]:
    arguments = ("--metrics-port", str(metrics_port), "--set", "log_format=json")
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with local_service(*arguments, environment=environment | variables, on_line=lines.append) as running_service:
        yield running_service


def report(lines: list[str]) -> dict[str, str]:
    """The addresses that the service prints before it is ready."""
    messages = [json.loads(line)["message"].split() for line in lines]
    return {words[0]: words[1] for words in messages if len(words) == 2}


def test_service_exports_every_metric_after_one_prediction(
    service: LocalService, metrics_port: int, lines: list[str]
) -> None:
    url = report(lines)["metrics"]
    assert httpx.URL(url).port == metrics_port
    assert predict(service, **SMALL, prompt="a red sailboat")["status"] == "succeeded"
    own = {name for metric in telemetry.METRICS for name in metric.exported_names}
    used = set[str]().union(*map(metric_names, expressions().values()))
    expected = (own | used) - NOT_AFTER_ONE_PREDICTION
    missing = until(
        lambda: expected - exported_names(httpx.get(url, timeout=30).raise_for_status().text),
        lambda names: not names,
    )
    assert not missing


def test_every_line_of_the_logs_is_json(service: LocalService, lines: list[str]) -> None:
    prediction_id = predict(service, **SMALL, prompt="an unmistakable prompt")["id"]
    folder = Path(report(lines)["logs"])
    texts = {path.name: path.read_text() for path in folder.glob("*.log")}
    assert not [name for name, text in texts.items() if "unmistakable" in text]
    ours = [name for name in texts if name.startswith(("replica_", "loras_"))]
    assert any(name.startswith("loras_") for name in ours)
    messages: list[dict[str, Any]] = [json.loads(line) for name in ours for line in texts[name].splitlines()]
    about = [each for each in messages if each.get("prediction_id") == prediction_id]
    assert {each["deployment"] for each in about} == {"flux_ingress", "flux_dev-bf16"}
    assert len({each["request_id"] for each in about}) == 1
    for each in about:
        assert each["pool"] == "dev-bf16"
        assert each["replica"]
        assert len(each["trace_id"]) == 32
        assert each["levelname"] == "INFO"
        assert each["name"].startswith("serve.")


def test_prediction_is_traced_from_its_caller_to_its_steps(service: LocalService, receiver: OtlpReceiver) -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-{CALLER}-01"}
    with connect(service) as client:
        response = client.post("/v1/predictions", json={"input": SMALL | {"prompt": "a boat"}}, headers=headers)
    assert finish(service, response.json()["id"])["status"] == "succeeded"
    expected = {
        "HTTP": None,
        "create": "HTTP",
        "admit": "create",
        "prediction": "create",
        "call_replica": "prediction",
        "wait_for_replica": "call_replica",
        "generate": "call_replica",
        **dict.fromkeys(("queue", "text", "denoise", "decode", "safety", "encode"), "generate"),
        "store": "call_replica",
    }
    of_trace = until(
        lambda: receiver.of_trace(TRACE_ID), lambda spans: {span.name for span in spans} >= expected.keys()
    )
    names = {span.span_id: span.name for span in of_trace}
    assert {span.name: names.get(span.parent_span_id) for span in of_trace} == expected
    [request] = [span for span in of_trace if span.name == "HTTP"]
    assert request.parent_span_id.hex() == CALLER
