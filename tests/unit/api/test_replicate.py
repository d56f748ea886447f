"""The Replicate API, called in this process."""

import asyncio
import base64
import json
import re
from typing import Any

import httpx
import pytest

from serve.events import ImageFlagged, Started
from serve.net.http_client import HttpClient
from serve.net.url_fetcher import UrlFetcher
from serve.settings import OutputSettings, PoolSettings, Settings
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import DONE, ONE_IMAGE, WEBP, FakePool, image_finished
from tests.images import data_uri, png

CAT = {"prompt": "a cat", "seed": 7, "num_inference_steps": 2}
WAIT = {"Prefer": "wait=5"}
PROBLEM = "application/problem+json"


async def post(
    app: AppUnderTest, body: object, headers: dict[str, str] | None = None, path: str = "/v1/predictions"
) -> httpx.Response:
    async with app.http as client:
        return await client.post(path, json=body, headers=headers)


async def get(app: AppUnderTest, path: str) -> httpx.Response:
    async with app.http as client:
        return await client.get(path)


async def test_prediction_is_created_at_once_and_polled_until_it_has_succeeded() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    created = await post(app, {"input": CAT})
    assert created.status_code == 201
    assert "Preference-Applied" not in created.headers
    first = created.json()
    assert (first["status"], first["output"], first["started_at"]) == ("starting", None, None)
    pool.may_start.set()
    await app.service.wait(first["id"])
    last = (await get(app, f"/v1/predictions/{first['id']}")).json()
    assert last["status"] == "succeeded"
    assert last["output"] == [f"data:image/webp;base64,{base64.b64encode(WEBP).decode()}"]


async def test_prediction_has_every_field() -> None:
    created = (await post(make_app(FakePool(ONE_IMAGE)), {"input": CAT}, WAIT)).json()
    prediction_id = created["id"]
    assert re.fullmatch("[a-z2-7]{26}", prediction_id)
    assert created["model"] == "black-forest-labs/flux-dev-lora"
    assert created["version"] == "embedded"
    assert created["input"] == CAT
    assert created["error"] is None
    assert created["logs"].startswith("Using seed: 7\n")
    assert {"predict_time", "total_time", "seed", "pool", "mean_batch"} <= created["metrics"].keys()
    assert created["data_removed"] is False
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", created[f"{name}_at"])
        for name in ("created", "started", "completed")
    )
    url = f"http://127.0.0.1:8000/v1/predictions/{prediction_id}"
    stream_url = created["urls"].pop("stream")
    assert created["urls"] == {"get": url, "cancel": f"{url}/cancel", "web": url}
    assert re.fullmatch(rf"http://127.0.0.1:8000/links/[^/]+/v1/predictions/{prediction_id}/stream", stream_url)


async def test_prefer_wait_returns_the_ended_prediction() -> None:
    created = await post(make_app(FakePool(ONE_IMAGE)), {"input": CAT}, WAIT)
    assert (created.status_code, created.json()["status"]) == (201, "succeeded")
    assert created.headers["Preference-Applied"] == "wait=5"


async def test_respond_async_is_applied() -> None:
    created = await post(make_app(FakePool(ONE_IMAGE)), {"input": CAT}, {"Prefer": "respond-async"})
    assert (created.json()["status"], created.headers["Preference-Applied"]) == ("starting", "respond-async")


async def test_expired_wait_returns_status_starting() -> None:
    pool = FakePool((Started(), image_finished(0)), slow_to_stop=True)
    app = make_app(pool, settings=Settings(max_wait_s=0.05))
    created = await post(app, {"input": CAT}, {"Prefer": "wait"})
    body = created.json()
    assert created.status_code == 201
    assert (body["status"], body["output"], body["started_at"], body["completed_at"]) == ("starting", None, None, None)
    assert (await get(app, f"/v1/predictions/{body['id']}")).json()["status"] == "processing"
    pool.may_stop.set()


async def test_responses_have_server_timing() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    created = await post(app, {"input": CAT}, WAIT)
    stages = dict(stage.split(";dur=") for stage in created.headers["Server-Timing"].split(", "))
    assert list(stages) == ["plan", "queue", "text", "denoise", "store"]
    assert float(stages["denoise"]) == 30.0
    read = await get(app, f"/v1/predictions/{created.json()['id']}")
    assert read.headers["Server-Timing"] == created.headers["Server-Timing"]


async def test_disconnect_does_not_cancel_the_prediction() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    waiting = asyncio.create_task(post(app, {"input": CAT}, WAIT))
    while not pool.calls:
        await asyncio.sleep(0.001)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    pool.may_start.set()
    assert (await app.service.wait(app.prediction_ids[0], timeout_s=5)).status == "succeeded"


async def test_cancel_returns_the_canceled_prediction() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    prediction_id = (await post(app, {"input": CAT})).json()["id"]
    canceled = await post(app, None, path=f"/v1/predictions/{prediction_id}/cancel")
    assert canceled.status_code == 200
    assert (canceled.json()["id"], canceled.json()["status"], canceled.json()["output"]) == (
        prediction_id,
        "canceled",
        None,
    )
    again = await post(app, None, path=f"/v1/predictions/{prediction_id}/cancel")
    assert again.json() == canceled.json()


async def test_failed_prediction_responds_with_201() -> None:
    created = await post(make_app(FakePool((Started(), ImageFlagged(0), DONE))), {"input": CAT}, WAIT)
    assert created.status_code == 201
    assert (created.json()["status"], created.json()["output"]) == ("failed", None)
    assert "NSFW" in created.json()["error"]


async def test_flagged_images_leave_gaps_in_the_file_names() -> None:
    settings = Settings(outputs=OutputSettings(public_url="https://flux.example/"))
    app = make_app(
        FakePool((Started(), image_finished(0), ImageFlagged(1), image_finished(2), DONE)), settings=settings
    )
    created = (await post(app, {"input": CAT | {"num_outputs": 3}}, WAIT)).json()
    for url, name in zip(created["output"], ("out-0.webp", "out-2.webp"), strict=True):
        assert url.startswith("https://flux.example/links/")
        assert url.endswith(f"/outputs/{created['id']}/1/{name}")
    assert created["urls"]["get"] == f"https://flux.example/v1/predictions/{created['id']}"


async def test_expired_images_set_data_removed() -> None:
    app = make_app(FakePool(ONE_IMAGE), settings=Settings(outputs=OutputSettings(max_age_s=0.01)))
    created = (await post(app, {"input": CAT}, WAIT)).json()
    await asyncio.sleep(0.05)
    read = (await get(app, f"/v1/predictions/{created['id']}")).json()
    assert (read["status"], read["output"], read["data_removed"]) == ("succeeded", None, True)


@pytest.mark.parametrize(
    ("version", "model"),
    [
        ("embedded", "black-forest-labs/flux-dev-lora"),
        ("d592f697", "fofr/flux-handwriting-and-sketch"),
        ("fofr/flux-handwriting-and-sketch", "fofr/flux-handwriting-and-sketch"),
        ("fofr/flux-handwriting-and-sketch:d592f697", "fofr/flux-handwriting-and-sketch"),
        (None, "black-forest-labs/flux-dev-lora"),
    ],
)
async def test_version_is_accepted_in_every_form(version: str | None, model: str) -> None:
    created = await post(make_app(FakePool(ONE_IMAGE)), {"input": CAT, "version": version})
    assert (created.status_code, created.json()["model"]) == (201, model)


async def test_model_is_selected_by_path() -> None:
    path = "/v1/models/fofr/flux-handwriting-and-sketch/predictions"
    created = await post(make_app(FakePool(ONE_IMAGE)), {"input": CAT, "stream": False}, path=path)
    assert (created.status_code, created.json()["version"]) == (201, "d592f697")


async def test_version_has_a_schema() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    version = (await get(app, "/v1/models/fofr/flux-handwriting-and-sketch/versions/d592f697")).json()
    assert version["id"] == "d592f697"
    assert version["cog_version"] == "0.15.8"
    assert version["created_at"].endswith("Z")
    assert len(version["openapi_schema"]["components"]["schemas"]["Input"]["properties"]) == 21


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/predictions/unknown"),
        ("POST", "/v1/predictions/unknown/cancel"),
        ("POST", "/v1/models/no/model/predictions"),
        ("GET", "/v1/models/no/model/versions/1"),
        ("GET", "/v1/models/fofr/flux-handwriting-and-sketch/versions/embedded"),
        ("GET", "/v1/nothing"),
        ("GET", "/v1"),
        ("GET", "/v1/collections/none"),
        ("POST", "/v1/deployments/me/mine/predictions"),
        ("GET", "/v1/trainings"),
        ("GET", "/v1/webhooks/other/secret"),
        ("POST", "/v1/models/fofr/flux-handwriting-and-sketch/versions/d592f697/trainings"),
        ("GET", "/v1/models/no/model"),
        ("GET", "/v1/models/no/model/versions"),
        ("GET", "/v1/files/unknown"),
        ("GET", "/v1/files/..%2f..%2fetc%2fpasswd/download"),
        ("GET", "/v2"),
    ],
)
async def test_unknown_resource_responds_with_404_problem(method: str, path: str) -> None:
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        missing = await client.request(method, path, json={"input": CAT} if method == "POST" else None)
    assert (missing.status_code, missing.headers["Content-Type"]) == (404, PROBLEM)
    assert missing.json()["status"] == 404
    assert missing.json()["detail"] not in ("", "Not Found")


async def test_unknown_path_responds_with_the_path_of_the_list_of_endpoints() -> None:
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        missing = await client.get("/v2")
    assert "/openapi.json" in missing.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/predictions", "GET, HEAD, POST"),
        ("PUT", "/v1/models", "GET, HEAD, POST, QUERY"),
        ("POST", "/v1/models/fofr/flux-handwriting-and-sketch", "DELETE, GET, HEAD, PATCH"),
        ("PUT", "/v1/files/1", "DELETE, GET, HEAD"),
        ("GET", "/predictions", "POST"),
    ],
)
async def test_wrong_method_responds_with_405_and_allow_header(method: str, path: str, allowed: str) -> None:
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        wrong = await client.request(method, path)
    assert (wrong.status_code, wrong.headers["Content-Type"], wrong.headers["Allow"]) == (405, PROBLEM, allowed)
    assert allowed in wrong.json()["detail"]


async def test_unknown_version_responds_with_the_same_title_as_replicate() -> None:
    response = await post(make_app(FakePool(ONE_IMAGE)), {"input": CAT, "version": "no/model:1"})
    assert (response.status_code, response.headers["Content-Type"]) == (422, PROBLEM)
    assert response.json()["title"] == "Invalid version or not permitted"
    assert "no/model:1" in response.json()["detail"]


def invalid_fields(response: httpx.Response) -> list[str]:
    """The fields of a 422 problem, after checking its other members."""
    body = response.json()
    assert (response.status_code, response.headers["Content-Type"]) == (422, PROBLEM)
    assert (body["title"], body["status"]) == ("Input validation failed", 422)
    assert all(error["type"] and error["description"] for error in body["invalid_fields"])
    assert all(error["description"] in body["detail"] for error in body["invalid_fields"])
    return [error["field"] for error in body["invalid_fields"]]


@pytest.mark.parametrize(
    ("inputs", "invalid"),
    [
        ({}, ["prompt"]),
        ({"prompt": None}, ["prompt"]),
        ({"prompt": ["a", "cat"]}, ["prompt"]),
        ({"prompt": "x" * 10_001}, ["prompt"]),
        ({"prompt": "\ud800"}, ["prompt"]),
        (
            {"prompt": "a", "num_outputs": 5, "width": 1.5, "aspect_ratio": "7:3"},
            ["aspect_ratio", "width", "num_outputs"],
        ),
        ({"prompt": "a", "guidance_scale": float("nan"), "seed": float("inf")}, ["guidance_scale", "seed"]),
        ({"prompt": "a", "mask": data_uri(png(64, 64))}, ["mask"]),
        ({"prompt": "a", "aspect_ratio": "custom"}, ["width", "height"]),
        ({"prompt": "a", "image": "ftp://example/a.png"}, ["image"]),
        ({"prompt": "a", "image": "data:image/png;base64,AAAA"}, ["image"]),
        ({"prompt": "a", "image": "data:image/png;base64"}, ["image"]),
        ({"prompt": "a", "image": data_uri(png(64, 64)[:99])}, ["image"]),
        ({"prompt": "a", "image": data_uri(png(9, 9)), "mask": "data:,x"}, ["image", "mask"]),
        ({"prompt": "a", "replicate_weights": "a cat", "extra_lora": "x://y"}, ["replicate_weights", "extra_lora"]),
    ],
)
async def test_all_invalid_inputs_are_reported(inputs: dict[str, Any], invalid: list[str]) -> None:
    response = await post_text(make_app(FakePool(ONE_IMAGE)), {"input": inputs})
    assert invalid_fields(response) == [f"input.{field}" for field in invalid]


async def test_input_image_over_the_megapixel_limit_is_rejected() -> None:
    settings = Settings(max_image_megapixels=0.01)
    response = await post(make_app(FakePool(ONE_IMAGE), settings), {"input": CAT | {"image": data_uri(png(200, 100))}})
    assert invalid_fields(response) == ["input.image"]
    assert "0.01" in response.json()["detail"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/a.png",
        "http://2130706433/a.png",
        "http://0x7f.1/a.png",
        "http://[::1]/a.png",
        "http://[::ffff:10.0.0.1]/a.png",
        "http://169.254.169.254/latest/meta-data?key=secret",
    ],
)
async def test_image_url_with_private_address_fails_the_prediction(url: str) -> None:
    pool = FakePool(ONE_IMAGE)
    fetch = Settings().fetch
    app = make_app(pool, fetcher=UrlFetcher(fetch, HttpClient(fetch)))
    failed = (await post(app, {"input": CAT | {"image": url}}, WAIT)).json()
    assert failed["status"] == "failed"
    assert "not public" in failed["error"]
    assert "secret" not in failed["error"]
    assert pool.calls == []


@pytest.mark.parametrize(
    ("body", "invalid"),
    [
        ({}, ["input"]),
        ({"input": None}, ["input"]),
        ({"input": [CAT]}, ["input"]),
        ({"input": CAT, "version": 7}, ["version"]),
        ({"input": CAT, "stream": "yes"}, ["stream"]),
        ({"input": CAT, "inputs": CAT, "prompt": "a"}, ["inputs", "prompt"]),
        ({"input": CAT, "webhook": 7, "webhook_events_filter": "start"}, ["webhook", "webhook_events_filter"]),
        ({"input": CAT, "webhook_completed": "https://me.example/"}, ["webhook_completed"]),
        ({"input": CAT, "\ud800" + "x" * 99: 1}, ["\\ud800" + "x" * 62 + "…"]),
    ],
)
async def test_all_invalid_body_keys_are_reported(body: dict[str, Any], invalid: list[str]) -> None:
    assert invalid_fields(await post_text(make_app(FakePool(ONE_IMAGE)), body)) == invalid


async def test_version_in_the_body_is_rejected_if_the_path_names_a_model() -> None:
    path = "/v1/models/fofr/flux-handwriting-and-sketch/predictions"
    assert invalid_fields(
        await post(make_app(FakePool(ONE_IMAGE)), {"input": CAT, "version": "d592f697"}, path=path)
    ) == ["version"]


async def post_text(app: AppUnderTest, body: object) -> httpx.Response:
    """Like `post`, for values that httpx cannot encode: NaN, Infinity and lone surrogates."""
    async with app.http as client:
        return await client.post("/v1/predictions", content=json.dumps(body))


async def test_full_pool_responds_with_429_and_retry_after() -> None:
    settings = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})
    app = make_app(FakePool(ONE_IMAGE, may_start=False), settings)
    await post(app, {"input": CAT})
    full = await post(app, {"input": CAT})
    assert (full.status_code, full.headers["Content-Type"], full.headers["Retry-After"]) == (429, PROBLEM, "10")
    assert (full.json()["title"], full.json()["retry_after"]) == ("Too many requests", 10)


async def test_service_that_is_not_open_responds_with_503() -> None:
    response = await post(make_app(FakePool(ONE_IMAGE), opened=False), {"input": CAT})
    assert (response.status_code, response.json()["title"]) == (503, "Service unavailable")


async def test_rejected_requests_do_not_count_as_in_flight() -> None:
    app = make_app(FakePool(ONE_IMAGE), Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)}))
    invalid_bodies: list[dict[str, Any]] = [
        {"input": {}},
        {"input": CAT | {"image": "data:,x"}},
        {"input": CAT, "version": "x"},
        {},
    ]
    for body in invalid_bodies:
        assert (await post(app, body)).status_code == 422
    assert (await post(app, {"input": CAT}, WAIT)).json()["status"] == "succeeded"


async def test_predictions_are_listed_newest_first_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.api.replicate.PAGE_SIZE", 2)
    app = make_app(FakePool(ONE_IMAGE))
    ids = [(await app.create({**CAT, "seed": seed})).id for seed in range(3)]
    first = (await get(app, "/v1/predictions")).json()
    assert [prediction["id"] for prediction in first["results"]] == ids[:0:-1]
    assert first["previous"] is None
    path = first["next"].removeprefix("http://127.0.0.1:8000")
    last = (await get(app, path)).json()
    assert [prediction["id"] for prediction in last["results"]] == ids[:1]
    assert last["next"] is None
    assert (await get(app, "/v1/predictions?cursor=nothing")).status_code == 404


async def test_list_has_urls_but_no_data_uris() -> None:
    for delivery, listed_output in (("url", True), ("data", False)):
        settings = Settings(outputs=OutputSettings(delivery=delivery))
        app = make_app(FakePool(ONE_IMAGE), settings)
        created = await app.create(CAT)
        await app.service.wait(created.id)
        listed = (await get(app, "/v1/predictions")).json()["results"][0]
        assert (listed["output"] is not None) is listed_output
        assert listed["data_removed"] is False
