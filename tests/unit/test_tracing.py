"""Spans of predictions: their parents, attributes and export."""

import json
import logging
import subprocess
import sys
from collections.abc import AsyncGenerator

import pytest

from serve import tracing
from serve.errors import EngineFailed
from serve.events import Event
from serve.settings import exports_traces
from tests.app_factory import close_apps, make_app
from tests.fakes import ONE_IMAGE, FakePool
from tests.logs import Logs
from tests.otlp_receiver import otlp_receiver
from tests.spans import Spans

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE_ID}-{CALLER}-01"}
ALLOWED_KEYS = {
    *("flux.pool", "flux.steps", "flux.outputs", "flux.size"),
    *("http.request.method", "http.response.status_code", "http.route", "error.type"),
}


@pytest.fixture(autouse=True)
async def closed_apps() -> AsyncGenerator[None, None]:
    yield
    await close_apps()


async def predict(*events: Event | BaseException) -> None:
    app = make_app(FakePool(events or ONE_IMAGE))
    inputs = {"prompt": "a secret prompt", "megapixels": "0.25"}
    async with app.http as client:
        headers = HEADERS | {"Prefer": "wait"}
        response = await client.post("/v1/predictions", json={"input": inputs}, headers=headers)
        assert response.status_code == 201
        await client.get("/readyz")
    await app.service._tasks.join()


async def test_spans_are_children_of_the_caller(spans: Spans) -> None:
    await predict()
    assert spans.trace_ids == {int(TRACE_ID, 16)}
    parent = spans.one("HTTP").parent
    assert parent is not None
    assert parent.span_id == int(CALLER, 16)
    assert spans.parents() == {
        "HTTP": None,
        "create": "HTTP",
        "admit": "create",
        "prediction": "create",
        "call_replica": "prediction",
        "wait_for_replica": "call_replica",
        "store": "call_replica",
    }


async def test_attributes_are_bounded(spans: Spans) -> None:
    await predict()
    assert dict(spans.one("HTTP").attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/predictions",
        "http.response.status_code": 201,
    }
    assert dict(spans.one("prediction").attributes or {}) == {
        "flux.pool": "dev-bf16",
        "flux.steps": 28,
        "flux.outputs": 1,
        "flux.size": "512x512",
    }
    assert {key for span in spans.all for key in span.attributes or ()} <= ALLOWED_KEYS
    assert "secret" not in "".join(span.to_json() for span in spans.all)


async def test_failed_prediction_has_the_class_of_its_error_only(spans: Spans) -> None:
    await predict(EngineFailed("see https://internal.example"))
    for name in ("prediction", "call_replica"):
        span = spans.one(name)
        assert not span.status.is_ok
        assert (span.attributes or {})["error.type"] == "EngineFailed"
    assert "internal.example" not in "".join(span.to_json() for span in spans.all)


async def test_request_of_an_unknown_path_has_no_route(spans: Spans) -> None:
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        await client.request("BREW", "/some/path")
    assert dict(spans.one("HTTP").attributes or {}) == {
        "http.request.method": "_OTHER",
        "http.response.status_code": 404,
    }


def test_span_that_continues_in_another_process_has_its_parent(spans: Spans) -> None:
    tracing.continue_from(HEADERS)
    with tracing.span("parent") as parent:
        assert tracing.trace_id() == TRACE_ID
        carrier = tracing.carrier()
        parent.record("past", 1.0, 2.5)
    tracing.continue_from(carrier)
    with tracing.detached_span("child") as child:
        child.record("grandchild", 0.0, 1.0)
    assert spans.parents() == {"parent": None, "past": "parent", "child": "parent", "grandchild": "child"}
    past = spans.one("past")
    assert past.start_time is not None
    assert past.end_time is not None
    assert past.end_time - past.start_time == pytest.approx(1.5e9, abs=1e6)


def test_spans_are_exported_over_otlp(monkeypatch: pytest.MonkeyPatch) -> None:
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        tracing.use_tracing()
        try:
            with tracing.span("outer"), tracing.span("inner"):
                pass
        finally:
            tracing.shut_down()
        assert receiver.parent_name(receiver.one("inner")) == "outer"
        assert receiver.services == {tracing.SERVICE_NAME}
    assert not tracing.is_on()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
    ],
)
def test_environment_turns_tracing_on(environment: dict[str, str], expected: bool) -> None:
    assert exports_traces(environment) is expected


def test_missing_exporter_leaves_tracing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    logs, logger = Logs(), logging.getLogger("serve.tracing")
    logger.addHandler(logs)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    tracing.use_tracing()
    logger.removeHandler(logs)
    assert not tracing.is_on()
    assert "tracing" in logs.text


OFF = """
import json, sys
from serve import tracing
import serve.predictions.runner

tracing.use_tracing()
with tracing.span("a", {"flux.pool": "b"}) as span, tracing.detached_span("c"):
    span.record("d", 0.0, 1.0)
    tracing.current().fail(ValueError())
tracing.continue_from({"traceparent": "x"})
print(json.dumps([tracing.carrier(), tracing.trace_id(), "opentelemetry" in sys.modules]))
"""


def test_opentelemetry_is_not_imported_while_tracing_is_off() -> None:
    process = subprocess.run([sys.executable, "-c", OFF], capture_output=True, text=True, check=True)
    assert json.loads(process.stdout) == [{}, "", False]
