"""The face of a Cog container, answered in this process."""

import asyncio
from typing import Any

import httpx
import pytest

from serve.events import Started
from serve.settings import PoolSettings, ServedModel, Settings
from tests.app_factory import House, house
from tests.fakes import ONE_IMAGE, FakePool
from tests.images import data_uri, png

CAT = {"prompt": "a cat", "seed": 7, "num_inference_steps": 2}
ONE_PLACE = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})


async def post(
    home: House, body: object, headers: dict[str, str] | None = None, path: str = "/predictions"
) -> httpx.Response:
    async with home.http as client:
        return await client.post(path, json=body, headers=headers)


async def get(home: House, path: str) -> Any:
    async with home.http as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    return answer.json()


async def test_a_prediction_is_answered_at_its_end_in_the_whole_envelope() -> None:
    answer = await post(house(FakePool(ONE_IMAGE)), {"input": CAT})
    body = answer.json()
    assert answer.status_code == 200
    assert list(body) == [
        "input", "output", "id", "version", "created_at", "started_at", "completed_at",
        "logs", "error", "status", "metrics",
    ]  # fmt: skip
    assert (body["status"], body["error"], body["version"]) == ("succeeded", None, "embedded")
    assert body["output"][0].startswith("data:image/webp;base64,")
    assert body["metrics"]["predict_time"] >= 0
    assert "denoise;dur=30.0" in answer.headers["Server-Timing"]


async def test_the_envelope_shows_every_input_with_its_default() -> None:
    model = ServedModel(owner="me", name="mine", versions=("1",), default_inputs={"output_quality": 50})
    home = house(FakePool(ONE_IMAGE), Settings(served_models=(model,)))
    shown = (await post(home, {"input": {"prompt": "a cat", "num_inference_steps": "2", "seed": None}})).json()["input"]
    assert len(shown) == 21
    assert (shown["num_inference_steps"], shown["output_quality"], shown["guidance_scale"]) == (2, 50, 3.0)
    assert shown["seed"] is None


async def test_a_large_picture_is_not_sent_back() -> None:
    uri = data_uri(png(200, 100) + bytes(100_000))
    answer = await post(house(FakePool(ONE_IMAGE)), {"input": CAT | {"image": uri}})
    assert answer.status_code == 200
    assert answer.json()["input"]["image"] == f"{uri[:64]}... ({len(uri)} characters)"


async def test_a_failed_prediction_is_answered_with_200() -> None:
    answer = await post(house(FakePool((Started(), RuntimeError("secret")))), {"input": CAT})
    body = answer.json()
    assert (answer.status_code, body["status"], body["output"]) == (200, "failed", None)
    assert "internal error" in body["error"]
    assert "secret" not in answer.text


async def test_an_asynchronous_call_is_answered_at_once_and_lives_on() -> None:
    pool = FakePool(ONE_IMAGE, going=False)
    home = house(pool)
    answer = await post(home, {"input": CAT}, {"Prefer": "respond-async"})
    assert (answer.status_code, answer.json()["status"]) == (202, "starting")
    pool.going.set()
    prediction_id = answer.json()["id"]
    assert (await home.desk.wait(prediction_id, timeout_s=5)).status == "succeeded"
    assert (await get(home, f"/v1/predictions/{prediction_id}"))["status"] == "succeeded"


async def test_a_prediction_is_cancelled_by_its_id() -> None:
    home = house(FakePool(ONE_IMAGE, going=False))
    prediction_id = (await post(home, {"input": CAT}, {"Prefer": "respond-async"})).json()["id"]
    answer = await post(home, None, path=f"/predictions/{prediction_id}/cancel")
    assert (answer.status_code, answer.json()) == (200, {})
    assert (await home.desk.get(prediction_id)).status == "canceled"
    unknown = await post(home, None, path="/predictions/nobody/cancel")
    assert (unknown.status_code, unknown.json()) == (404, {})


async def hang_up(home: House, begun: asyncio.Event) -> list[dict[str, Any]]:
    """Sends a synchronous call whose client leaves when `begun` is set; returns what it was still sent."""
    body = b'{"input": {"prompt": "a cat", "num_inference_steps": 2}}'
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/predictions", "root_path": "", "headers": [], "query_string": b"",
    }  # fmt: skip
    await asyncio.wait_for(home.app(scope, receive, send), 5)
    return sent


async def test_a_client_that_leaves_a_synchronous_call_cancels_it() -> None:
    pool = FakePool(ONE_IMAGE, going=False)
    home = house(pool, ONE_PLACE)
    left = asyncio.Event()
    calling = asyncio.create_task(hang_up(home, left))
    while not pool.calls:
        await asyncio.sleep(0.001)
    left.set()
    assert [message.get("status") for message in await calling] == [499, None]
    assert (await home.desk.get(home.made[0])).status == "canceled"
    await asyncio.sleep(0.01)
    assert pool.stopped == 1
    pool.going.set()
    assert (await post(home, {"input": CAT})).json()["status"] == "succeeded"


async def test_a_call_that_the_server_cancels_cancels_its_prediction() -> None:
    pool = FakePool(ONE_IMAGE, going=False)
    home = house(pool)
    calling = asyncio.create_task(post(home, {"input": CAT}))
    while not pool.calls:
        await asyncio.sleep(0.001)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    assert (await home.desk.get(home.made[0])).status == "canceled"


@pytest.mark.parametrize(
    ("body", "places"),
    [
        ({"input": {}}, [["body", "input", "prompt"]]),
        ({"input": {"prompt": 7, "width": 99}}, [["body", "input", "prompt"], ["body", "input", "width"]]),
        ({"input": {"prompt": "a", "image": "data:,x"}}, [["body", "input", "image"]]),
        ({"input": {"prompt": "a", "mask": data_uri(png(64, 64))}}, [["body", "input", "mask"]]),
        ({}, [["body", "input"]]),
        ({"input": CAT, "webhook": "https://me.example", "id": "mine"}, [["body", "webhook"], ["body", "id"]]),
        ({"input": CAT, "version": "embedded"}, [["body", "version"]]),
    ],
)
async def test_faults_are_a_list_of_places(body: dict[str, Any], places: list[list[str]]) -> None:
    refused = await post(house(FakePool(ONE_IMAGE)), body)
    assert (refused.status_code, refused.headers["Content-Type"]) == (422, "application/json")
    assert [fault["loc"] for fault in refused.json()["detail"]] == places
    assert all(fault["msg"] and fault["type"] for fault in refused.json()["detail"])


async def test_a_full_pool_answers_429_with_a_time_and_a_busy_health() -> None:
    home = house(FakePool(ONE_IMAGE, going=False), ONE_PLACE)
    assert (await get(home, "/health-check"))["status"] == "READY"
    await post(home, {"input": CAT}, {"Prefer": "respond-async"})
    full = await post(home, {"input": CAT})
    assert (full.status_code, full.headers["Retry-After"]) == (429, "1")
    assert full.json() == {"detail": "the pool 'dev-bf16' is full, try again in 1 s"}
    assert (await get(home, "/health-check"))["status"] == "BUSY"


async def test_health_follows_the_desk_from_start_to_stop() -> None:
    home = house(FakePool(ONE_IMAGE), opened=False)
    early = await get(home, "/health-check")
    assert (early["status"], early["setup"]["completed_at"]) == ("STARTING", None)
    assert (await post(home, {"input": CAT})).status_code == 503
    home.desk.open()
    ready = await get(home, "/health-check")
    assert (ready["status"], ready["setup"]["status"], ready["setup"]["logs"]) == ("READY", "succeeded", "")
    assert ready["setup"]["started_at"] <= ready["setup"]["completed_at"]
    await home.desk.close(grace_s=1)
    assert (await get(home, "/health-check"))["status"] == "DEFUNCT"
    assert (await post(home, {"input": CAT})).status_code == 503


async def test_the_index_names_paths_that_exist() -> None:
    home = house(FakePool(ONE_IMAGE))
    index = await get(home, "/")
    assert index["cog_version"] == "0.15.8"
    for name in ("openapi_url", "healthcheck_url"):
        await get(home, index[name])
    assert (await post(home, {"input": CAT}, path=index["predictions_url"])).status_code == 200


async def test_the_schema_is_that_of_the_first_served_model() -> None:
    document = await get(house(FakePool(ONE_IMAGE)), "/openapi.json")
    assert document["info"]["title"] == "Cog"
    assert document["components"]["schemas"]["Input"]["required"] == ["prompt"]


async def test_an_unknown_path_is_a_404_with_a_detail() -> None:
    async with house(FakePool(ONE_IMAGE)).http as client:
        missing = await client.get("/nothing")
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
