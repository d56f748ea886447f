"""The Cog API, called in this process."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from serve.events import Started
from serve.settings import PoolSettings, ServedModel, Settings
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import ONE_IMAGE, FakePool
from tests.images import data_uri, png

CAT = {"prompt": "a cat", "seed": 7, "num_inference_steps": 2}
ONE_IN_FLIGHT = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})


async def post(
    app: AppUnderTest, body: object, headers: dict[str, str] | None = None, path: str = "/predictions"
) -> httpx.Response:
    async with app.http as client:
        return await client.post(path, json=body, headers=headers)


async def get(app: AppUnderTest, path: str) -> Any:
    async with app.http as client:
        response = await client.get(path)
    assert response.status_code == 200
    return response.json()


async def test_prediction_response_has_every_field() -> None:
    response = await post(make_app(FakePool(ONE_IMAGE)), {"input": CAT})
    body = response.json()
    assert response.status_code == 200
    assert list(body) == [
        "input", "output", "id", "version", "created_at", "started_at", "completed_at",
        "logs", "error", "status", "metrics",
    ]  # fmt: skip
    assert (body["status"], body["error"], body["version"]) == ("succeeded", None, "embedded")
    assert body["output"][0].startswith("data:image/webp;base64,")
    assert body["metrics"]["predict_time"] >= 0
    assert "denoise;dur=30.0" in response.headers["Server-Timing"]


async def test_response_has_every_input_with_its_default() -> None:
    model = ServedModel(owner="me", name="mine", versions=("1",), default_inputs={"output_quality": 50})
    app = make_app(FakePool(ONE_IMAGE), Settings(served_models=(model,)))
    inputs = (await post(app, {"input": {"prompt": "a cat", "num_inference_steps": "2", "seed": None}})).json()["input"]
    assert len(inputs) == 21
    assert (inputs["num_inference_steps"], inputs["output_quality"], inputs["guidance_scale"]) == (2, 50, 3.0)
    assert inputs["seed"] is None


async def test_large_data_uri_is_shortened_in_the_response() -> None:
    uri = data_uri(png(200, 100) + bytes(100_000))
    response = await post(make_app(FakePool(ONE_IMAGE)), {"input": CAT | {"image": uri}})
    assert response.status_code == 200
    assert response.json()["input"]["image"] == f"{uri[:64]}... ({len(uri)} characters)"


async def test_failed_prediction_responds_with_200() -> None:
    response = await post(make_app(FakePool((Started(), RuntimeError("secret")))), {"input": CAT})
    body = response.json()
    assert (response.status_code, body["status"], body["output"]) == (200, "failed", None)
    assert "internal" in body["error"]
    assert "secret" not in response.text


async def test_asynchronous_request_responds_at_once_and_keeps_running() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    response = await post(app, {"input": CAT}, {"Prefer": "respond-async"})
    assert (response.status_code, response.json()["status"]) == (202, "starting")
    pool.may_start.set()
    prediction_id = response.json()["id"]
    assert (await app.service.wait(prediction_id, timeout_s=5)).status == "succeeded"
    assert (await get(app, f"/v1/predictions/{prediction_id}"))["status"] == "succeeded"


async def test_prediction_is_cancelled_by_its_id() -> None:
    app = make_app(FakePool(ONE_IMAGE, may_start=False))
    prediction_id = (await post(app, {"input": CAT}, {"Prefer": "respond-async"})).json()["id"]
    response = await post(app, None, path=f"/predictions/{prediction_id}/cancel")
    assert (response.status_code, response.json()) == (200, {})
    assert (await app.service.get(prediction_id)).status == "canceled"
    unknown = await post(app, None, path="/predictions/unknown/cancel")
    assert (unknown.status_code, unknown.json()) == (404, {})


async def post_and_disconnect(app: AppUnderTest, disconnect: asyncio.Event) -> list[dict[str, Any]]:
    """Posts a prediction, disconnects when `disconnect` is set, and returns the messages sent to the client."""
    body = b'{"input": {"prompt": "a cat", "num_inference_steps": 2}}'
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await disconnect.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/predictions", "root_path": "", "headers": [], "query_string": b"",
    }  # fmt: skip
    await asyncio.wait_for(app.app(scope, receive, send), 5)
    return sent


async def test_disconnect_cancels_a_synchronous_request() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool, ONE_IN_FLIGHT)
    disconnect = asyncio.Event()
    request = asyncio.create_task(post_and_disconnect(app, disconnect))
    while not pool.calls:
        await asyncio.sleep(0.001)
    disconnect.set()
    assert [message.get("status") for message in await request] == [499, None]
    assert (await app.service.get(app.prediction_ids[0])).status == "canceled"
    await asyncio.sleep(0.01)
    assert pool.stop_count == 1
    pool.may_start.set()
    assert (await post(app, {"input": CAT})).json()["status"] == "succeeded"


async def test_cancelled_request_task_cancels_its_prediction() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    request = asyncio.create_task(post(app, {"input": CAT}))
    while not pool.calls:
        await asyncio.sleep(0.001)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    assert (await app.service.get(app.prediction_ids[0])).status == "canceled"


@pytest.mark.parametrize(
    ("body", "locations"),
    [
        ({"input": {}}, [["body", "input", "prompt"]]),
        ({"input": {"prompt": 7, "width": 99}}, [["body", "input", "prompt"], ["body", "input", "width"]]),
        ({"input": {"prompt": "a", "image": "data:,x"}}, [["body", "input", "image"]]),
        ({"input": {"prompt": "a", "mask": data_uri(png(64, 64))}}, [["body", "input", "mask"]]),
        ({}, [["body", "input"]]),
        ({"input": CAT, "webhook": 7, "id": 7}, [["body", "webhook"], ["body", "id"]]),
        ({"input": CAT, "webhook": "ftp://me.example"}, [["body", "webhook"]]),
        ({"input": CAT, "version": "embedded"}, [["body", "version"]]),
    ],
)
async def test_invalid_fields_are_listed_by_location(body: dict[str, Any], locations: list[list[str]]) -> None:
    response = await post(make_app(FakePool(ONE_IMAGE)), body)
    assert (response.status_code, response.headers["Content-Type"]) == (422, "application/json")
    assert [error["loc"] for error in response.json()["detail"]] == locations
    assert all(error["msg"] and error["type"] for error in response.json()["detail"])


async def test_full_pool_responds_with_429_and_health_is_busy() -> None:
    app = make_app(FakePool(ONE_IMAGE, may_start=False), ONE_IN_FLIGHT)
    assert (await get(app, "/health-check"))["status"] == "READY"
    await post(app, {"input": CAT}, {"Prefer": "respond-async"})
    full = await post(app, {"input": CAT})
    assert (full.status_code, full.headers["Retry-After"]) == (429, "10")
    assert full.json().keys() == {"detail"}
    assert "dev-bf16" in full.json()["detail"]
    assert (await get(app, "/health-check"))["status"] == "BUSY"


async def test_health_follows_the_service_from_start_to_stop() -> None:
    app = make_app(FakePool(ONE_IMAGE), opened=False)
    starting = await get(app, "/health-check")
    assert (starting["status"], starting["setup"]["completed_at"]) == ("STARTING", None)
    assert (await post(app, {"input": CAT})).status_code == 503
    app.service.open()
    ready = await get(app, "/health-check")
    assert (ready["status"], ready["setup"]["status"], ready["setup"]["logs"]) == ("READY", "succeeded", "")
    assert ready["setup"]["started_at"] <= ready["setup"]["completed_at"]
    await app.service.close(grace_s=1)
    assert (await get(app, "/health-check"))["status"] == "DEFUNCT"
    assert (await post(app, {"input": CAT})).status_code == 503


async def test_index_lists_paths_that_exist() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    index = await get(app, "/")
    assert index["cog_version"] == "0.15.8"
    assert {"predictions_url", "predictions_cancel_url"} < index.keys()
    assert "docs_url" not in index
    served = {route.path for route in app.app.routes if isinstance(route, Route)}
    assert {path for name, path in index.items() if name.endswith("_url")} <= served
    for name in ("openapi_url", "healthcheck_url"):
        await get(app, index[name])
    assert (await post(app, {"input": CAT}, path=index["predictions_url"])).status_code == 200


async def test_openapi_document_describes_the_first_served_model() -> None:
    document = await get(make_app(FakePool(ONE_IMAGE)), "/openapi.json")
    assert document["info"]["title"] == "Cog"
    assert document["components"]["schemas"]["Input"]["required"] == ["prompt"]


async def test_unknown_path_responds_with_404_and_a_detail() -> None:
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        missing = await client.get("/nothing")
    assert (missing.status_code, missing.headers["Content-Type"]) == (404, "application/problem+json")
    assert "/nothing" in missing.json()["detail"]
