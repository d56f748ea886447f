"""The fields that JSON messages get from the context that logs them."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from serve import logs, tracing
from serve.errors import FetchFailed
from tests.app_factory import close_apps, make_app
from tests.fakes import ONE_IMAGE, FakePool
from tests.logs import Logs
from tests.spans import Spans


def fields_of(filter_: logging.Filter) -> dict[str, Any]:
    record = logging.LogRecord("serve", logging.INFO, "file.py", 1, "message", (), None)
    before = set(record.__dict__)
    assert filter_.filter(record)
    return {name: value for name, value in record.__dict__.items() if name not in before}


def test_fields_are_those_of_the_process_the_request_and_the_prediction() -> None:
    def in_context() -> None:
        logs.request_id.set("request")
        assert fields_of(logs.ContextFilter({"pool": "a"})) == {"pool": "a", "request_id": "request"}
        logs.set_prediction("prediction", "creating request", "b")
        assert fields_of(logs.ContextFilter({"pool": "a"})) == {
            "pool": "b",
            "prediction_id": "prediction",
            "request_id": "creating request",
        }

    contextvars.Context().run(in_context)


def test_context_without_a_request_adds_no_fields() -> None:
    assert contextvars.Context().run(fields_of, logs.ContextFilter({})) == {}


@pytest.fixture(autouse=True)
async def closed_apps() -> AsyncGenerator[None, None]:
    yield
    await close_apps()


@pytest.fixture
def captured() -> Iterator[Logs]:
    handler, logger = Logs(), logging.getLogger("serve")
    handler.addFilter(logs.ContextFilter({}))
    level, handlers = logger.level, logger.handlers
    logger.setLevel(logging.INFO)
    logger.handlers = [handler]
    yield handler
    logger.setLevel(level)
    logger.handlers = handlers


async def test_messages_of_a_running_prediction_have_its_id_pool_and_request(captured: Logs) -> None:
    app = make_app(FakePool(ONE_IMAGE))
    async with app.http as client:
        response = await client.post(
            "/v1/predictions",
            json={"input": {"prompt": "a secret prompt"}},
            headers={"Prefer": "wait", "X-Request-ID": "of-the-client"},
        )
    assert response.json()["status"] == "succeeded"
    about = [record for record in captured.records if app.prediction_ids[0] in record.getMessage()]
    assert [record.getMessage().split(": ")[1].split()[0] for record in about] == ["accepted", "succeeded"]
    for record in about:
        assert vars(record)["prediction_id"] == app.prediction_ids[0]
        assert vars(record)["request_id"] == "of-the-client"
        assert vars(record)["pool"] == "dev-bf16"


async def test_message_about_a_canceled_prediction_has_its_id(captured: Logs) -> None:
    app = make_app(FakePool(ONE_IMAGE, may_start=False))
    async with app.http as client:
        created = (await client.post("/v1/predictions", json={"input": {"prompt": "x"}})).json()
        await client.post(f"/v1/predictions/{created['id']}/cancel", headers={"X-Request-ID": "of-the-cancel"})
    [ended] = [record for record in captured.records if ": canceled" in record.getMessage()]
    assert vars(ended)["prediction_id"] == created["id"]
    assert vars(ended)["request_id"] == "of-the-cancel"


def test_message_of_a_traced_request_has_the_id_of_its_trace(spans: Spans) -> None:
    with tracing.span("a"):
        assert fields_of(logs.ContextFilter({})) == {"trace_id": tracing.trace_id()}
    assert spans.one("a")


async def test_prompts_are_not_logged(captured: Logs) -> None:
    for events in (ONE_IMAGE, (FetchFailed("x", "y"),), (RuntimeError("an internal error"),)):
        app = make_app(FakePool(events))
        async with app.http as client:
            await client.post(
                "/v1/predictions", json={"input": {"prompt": "a secret prompt"}}, headers={"Prefer": "wait"}
            )
    await asyncio.sleep(0)
    assert captured.records
    assert "secret" not in captured.text
