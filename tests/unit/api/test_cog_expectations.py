"""What Cog's own tests expect of its HTTP API, as far as it applies to this model."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.events import Started
from serve.predictions.prediction import Prediction
from serve.predictions.store import PredictionStore
from serve.settings import CogSettings, FetchSettings, Settings
from tests.app_factory import make_app
from tests.asgi_server import listening
from tests.fakes import ONE_IMAGE, FakePool

CAT = {"prompt": "a cat", "seed": 7, "num_inference_steps": 2}
BODY: dict[str, Any] = {"input": CAT}

REQUESTS: Sequence[tuple[str, str, Any, int, dict[str, Any]]] = (
    # method, path, body, status, part of the response
    ("PUT", "/predictions/p1", BODY, 200, {"id": "p1", "status": "succeeded"}),
    ("PUT", "/predictions/p1", BODY | {"id": "p1"}, 200, {"id": "p1", "status": "succeeded"}),
    ("POST", "/predictions", BODY | {"id": "p2"}, 200, {"id": "p2", "status": "succeeded"}),
    ("POST", "/predictions", BODY | {"created_at": "2026-01-01T00:00:00Z"}, 200, {"status": "succeeded"}),
    ("POST", "/predictions", BODY | {"context": {"trace": "1"}}, 200, {"status": "succeeded"}),
    ("POST", "/predictions/unknown/cancel", {}, 404, {}),
    ("GET", "/predictions/p1", None, 405, {}),
    ("POST", "/predictions", {"input": {}}, 422, {}),
    ("POST", "/predictions", {}, 422, {}),
    ("POST", "/shutdown", {}, 404, {}),
)


@pytest.mark.parametrize(("method", "path", "body", "status", "part"), REQUESTS)
async def test_request(method: str, path: str, body: Any, status: int, part: dict[str, Any]) -> None:
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        response = await client.request(method, path, json=body)
    assert response.status_code == status
    assert part.items() <= response.json().items()


INVALID = [
    ("id", {"id": "p2"}, "value_error"),
    ("output_file_prefix", {"output_file_prefix": "ftp://files.example"}, "url"),
    ("created_at", {"created_at": "yesterday"}, "datetime_parsing"),
    ("context", {"context": "text"}, "dict_type"),
]


@pytest.mark.parametrize(("field", "fields", "kind"), INVALID)
async def test_invalid_field_is_named(field: str, fields: dict[str, Any], kind: str) -> None:
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        response = await client.put("/predictions/p1", json=BODY | fields)
    (detail,) = response.json()["detail"]
    assert (response.status_code, detail["loc"], detail["type"]) == (422, ["body", field], kind)


async def test_id_with_other_characters_is_rejected() -> None:
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        response = await client.put("/predictions/a.b", json=BODY)
    assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, ["body", "id"])


async def test_repeated_put_with_invalid_inputs_is_rejected() -> None:
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        assert (await client.put("/predictions/p1", json=BODY)).status_code == 200
        again = await client.put("/predictions/p1", json={"input": CAT | {"num_outputs": 9}})
    assert again.status_code == 422
    assert again.json()["detail"][0]["loc"] == ["body", "input", "num_outputs"]


@pytest.mark.parametrize(
    ("method", "path", "body", "second_status"),
    [("PUT", "/predictions/p1", BODY, 202), ("POST", "/predictions", BODY | {"id": "p1"}, 409)],
)
async def test_two_requests_with_one_id_at_the_same_time_make_one_prediction(
    method: str, path: str, body: dict[str, Any], second_status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, both = PredictionStore.create, asyncio.Barrier(2)

    async def create_at_once(store: PredictionStore, *arguments: Any) -> Prediction:
        await both.wait()
        return await create(store, *arguments)

    monkeypatch.setattr(PredictionStore, "create", create_at_once)
    pools = [FakePool(ONE_IMAGE, may_start=False) for _ in range(2)]
    first = make_app(pools[0])
    clients = [first.http, make_app(pools[1], state=first.state).http]
    tasks = [asyncio.create_task(client.request(method, path, json=body)) for client in clients]
    done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=10)
    assert [task.result().status_code for task in done] == [second_status]
    for pool in pools:
        pool.may_start.set()
    response = await waiting.pop()
    assert (response.status_code, response.json()["id"], response.json()["status"]) == (200, "p1", "succeeded")
    assert sum(len(pool.calls) for pool in pools) == 1


async def test_repeated_put_runs_once_and_responds_with_the_state() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    async with app.http as client:
        first = await client.put("/predictions/p1", json=BODY, headers={"Prefer": "respond-async"})
        again = await client.put("/predictions/p1", json=BODY)
        taken = await client.post("/predictions", json=BODY | {"id": "p1"})
        pool.may_start.set()
        await app.service.wait("p1", timeout_s=5)
        ended = await client.put("/predictions/p1", json=BODY)
    assert [first.status_code, again.status_code, taken.status_code, ended.status_code] == [202, 202, 409, 200]
    assert (again.json()["status"], ended.json()["status"]) == ("starting", "succeeded")
    assert app.prediction_ids == ["p1"]


async def test_short_envelope() -> None:
    app = make_app(FakePool(ONE_IMAGE), Settings(cog=CogSettings(envelope="short")))
    failing = make_app(FakePool((Started(), RuntimeError())), Settings(cog=CogSettings(envelope="short")))
    async with app.http as client, failing.http as other:
        body = (await client.post("/predictions", json=BODY)).json()
        accepted = (await client.post("/predictions", json=BODY, headers={"Prefer": "respond-async"})).json()
        failed = (await other.post("/predictions", json=BODY)).json()
    assert list(body) == ["id", "output", "logs", "status", "metrics"]
    assert list(accepted) == ["id", "status"]
    assert list(failed) == [*body, "error"]


async def test_setup_that_failed_is_shown() -> None:
    app = make_app(FakePool(ONE_IMAGE), opened=False)
    app.service.fail_setup()
    async with app.http as client:
        health = (await client.get("/health-check")).json()
    assert (health["status"], health["setup"]["status"]) == ("SETUP_FAILED", "failed")


async def test_shutdown_is_a_setting() -> None:
    app = make_app(FakePool(ONE_IMAGE), Settings(cog=CogSettings(shutdown=True)))
    async with app.http as client:
        index = (await client.get("/")).json()
        response = await client.post("/shutdown")
    assert (response.status_code, response.json(), len(app.shutdowns)) == (200, {}, 1)
    assert index["shutdown_url"] == "/shutdown"


@pytest.mark.parametrize("by_setting", [True, False])
async def test_images_are_uploaded(by_setting: bool) -> None:
    received: list[tuple[str, str, str | None]] = []

    async def receive(request: Request) -> Response:
        headers = request.headers
        received.append((request.url.path, headers["content-type"], headers.get("x-prediction-id")))
        assert await request.body()
        return Response(status_code=201, headers={"Location": "https://files.example/image.webp?signature=1"})

    upload = Starlette(routes=[Route("/{path:path}", receive, methods=["PUT"])])
    async with listening(upload) as url:
        fetch = FetchSettings(allowed_hosts=("127.0.0.1",))
        cog = CogSettings(upload_url=f"{url}/in") if by_setting else CogSettings()
        fields = {} if by_setting else {"output_file_prefix": f"{url}/in/"}
        async with make_app(FakePool(ONE_IMAGE), Settings(cog=cog, fetch=fetch)).http as client:
            response = await client.put("/predictions/p1", json=BODY | fields)
    assert response.json()["output"] == ["https://files.example/image.webp"]
    assert received == [("/in/out-0.webp", "image/webp", "p1")]


async def test_upload_that_fails_fails_the_prediction() -> None:
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        response = await client.post("/predictions", json=BODY | {"output_file_prefix": "http://127.0.0.1:9/secret"})
    body = response.json()
    assert (body["status"], body["output"]) == ("failed", None)
    assert "secret" not in body["error"]
