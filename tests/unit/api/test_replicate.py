"""The `/v1` face, answered in this process."""

import asyncio
import base64
import json
import re
from typing import Any

import httpx
import pytest

from serve.events import ImageFlagged, Started
from serve.net.url_fetcher import UrlFetcher
from serve.settings import OutputSettings, PoolSettings, Settings
from tests.app_factory import House, house
from tests.fakes import DONE, ONE_IMAGE, WEBP, FakePool, drawn
from tests.images import data_uri, png

CAT = {"prompt": "a cat", "seed": 7, "num_inference_steps": 2}
WAIT = {"Prefer": "wait=5"}
PROBLEM = "application/problem+json"


async def post(
    home: House, body: object, headers: dict[str, str] | None = None, path: str = "/v1/predictions"
) -> httpx.Response:
    async with home.http as client:
        return await client.post(path, json=body, headers=headers)


async def get(home: House, path: str) -> httpx.Response:
    async with home.http as client:
        return await client.get(path)


async def test_a_prediction_is_made_at_once_and_read_again_until_it_has_succeeded() -> None:
    pool = FakePool(ONE_IMAGE, going=False)
    home = house(pool)
    made = await post(home, {"input": CAT})
    assert made.status_code == 201
    assert "Preference-Applied" not in made.headers
    first = made.json()
    assert (first["status"], first["output"], first["started_at"]) == ("starting", None, None)
    pool.going.set()
    await home.desk.wait(first["id"])
    last = (await get(home, f"/v1/predictions/{first['id']}")).json()
    assert last["status"] == "succeeded"
    assert last["output"] == [f"data:image/webp;base64,{base64.b64encode(WEBP).decode()}"]


async def test_a_prediction_has_every_field_that_clients_read() -> None:
    made = (await post(house(FakePool(ONE_IMAGE)), {"input": CAT}, WAIT)).json()
    prediction_id = made["id"]
    assert re.fullmatch("[a-z2-7]{26}", prediction_id)
    assert made["model"] == "black-forest-labs/flux-dev-lora"
    assert made["version"] == "embedded"
    assert made["input"] == CAT
    assert made["error"] is None
    assert made["logs"].startswith("Using seed: 7\n")
    assert {"predict_time", "total_time", "seed", "pool", "mean_batch"} <= made["metrics"].keys()
    assert made["data_removed"] is False
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", made[f"{name}_at"])
        for name in ("created", "started", "completed")
    )
    here = f"http://127.0.0.1:8000/v1/predictions/{prediction_id}"
    assert made["urls"] == {"get": here, "cancel": f"{here}/cancel", "web": here}


async def test_waiting_gives_the_end_and_says_that_it_waited() -> None:
    made = await post(house(FakePool(ONE_IMAGE)), {"input": CAT}, WAIT)
    assert (made.status_code, made.json()["status"]) == (201, "succeeded")
    assert made.headers["Preference-Applied"] == "wait=5"


async def test_a_client_that_would_rather_not_wait_is_told_that_it_need_not() -> None:
    made = await post(house(FakePool(ONE_IMAGE)), {"input": CAT}, {"Prefer": "respond-async"})
    assert (made.json()["status"], made.headers["Preference-Applied"]) == ("starting", "respond-async")


async def test_a_wait_that_expires_answers_starting_although_the_work_has_begun() -> None:
    pool = FakePool((Started(), drawn(0)), slow_to_stop=True)
    home = house(pool, settings=Settings(max_wait_s=0.05))
    made = await post(home, {"input": CAT}, {"Prefer": "wait"})
    body = made.json()
    assert made.status_code == 201
    assert (body["status"], body["output"], body["started_at"], body["completed_at"]) == ("starting", None, None, None)
    assert (await get(home, f"/v1/predictions/{body['id']}")).json()["status"] == "processing"
    pool.let_go.set()


async def test_the_answer_carries_its_own_bill() -> None:
    home = house(FakePool(ONE_IMAGE))
    made = await post(home, {"input": CAT}, WAIT)
    stages = dict(stage.split(";dur=") for stage in made.headers["Server-Timing"].split(", "))
    assert list(stages) == ["plan", "queue", "text", "denoise", "store"]
    assert float(stages["denoise"]) == 30.0
    read = await get(home, f"/v1/predictions/{made.json()['id']}")
    assert read.headers["Server-Timing"] == made.headers["Server-Timing"]


async def test_a_client_that_hangs_up_leaves_its_prediction_alive() -> None:
    pool = FakePool(ONE_IMAGE, going=False)
    home = house(pool)
    waiting = asyncio.create_task(post(home, {"input": CAT}, WAIT))
    while not pool.calls:
        await asyncio.sleep(0.001)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    pool.going.set()
    assert (await home.desk.wait(home.made[0], timeout_s=5)).status == "succeeded"


async def test_cancelling_answers_with_the_canceled_prediction() -> None:
    pool = FakePool(ONE_IMAGE, going=False)
    home = house(pool)
    prediction_id = (await post(home, {"input": CAT})).json()["id"]
    canceled = await post(home, None, path=f"/v1/predictions/{prediction_id}/cancel")
    assert canceled.status_code == 200
    assert (canceled.json()["id"], canceled.json()["status"], canceled.json()["output"]) == (
        prediction_id,
        "canceled",
        None,
    )
    again = await post(home, None, path=f"/v1/predictions/{prediction_id}/cancel")
    assert again.json() == canceled.json()


async def test_a_failed_prediction_is_an_answer_and_no_error() -> None:
    made = await post(house(FakePool((Started(), ImageFlagged(0), DONE))), {"input": CAT}, WAIT)
    assert made.status_code == 201
    assert (made.json()["status"], made.json()["output"]) == ("failed", None)
    assert made.json()["error"].startswith("All generated images contained NSFW content.")


async def test_indices_of_withheld_pictures_stay_free() -> None:
    settings = Settings(outputs=OutputSettings(public_url="https://flux.example/"))
    home = house(FakePool((Started(), drawn(0), ImageFlagged(1), drawn(2), DONE)), settings=settings)
    made = (await post(home, {"input": CAT | {"num_outputs": 3}}, WAIT)).json()
    base = f"https://flux.example/outputs/{made['id']}"
    assert made["output"] == [f"{base}/out-0.webp", f"{base}/out-2.webp"]
    assert made["urls"]["get"] == f"https://flux.example/v1/predictions/{made['id']}"


async def test_pictures_that_are_kept_no_longer_are_said_to_be_removed() -> None:
    home = house(FakePool(ONE_IMAGE), settings=Settings(outputs=OutputSettings(max_age_s=0.01)))
    made = (await post(home, {"input": CAT}, WAIT)).json()
    await asyncio.sleep(0.05)
    read = (await get(home, f"/v1/predictions/{made['id']}")).json()
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
async def test_a_version_may_be_named_in_every_form(version: str | None, model: str) -> None:
    made = await post(house(FakePool(ONE_IMAGE)), {"input": CAT, "version": version})
    assert (made.status_code, made.json()["model"]) == (201, model)


async def test_a_model_is_named_by_its_path() -> None:
    path = "/v1/models/fofr/flux-handwriting-and-sketch/predictions"
    made = await post(house(FakePool(ONE_IMAGE)), {"input": CAT, "stream": False}, path=path)
    assert (made.status_code, made.json()["version"]) == (201, "d592f697")


async def test_a_version_has_a_schema() -> None:
    home = house(FakePool(ONE_IMAGE))
    version = (await get(home, "/v1/models/fofr/flux-handwriting-and-sketch/versions/d592f697")).json()
    assert version["id"] == "d592f697"
    assert version["cog_version"] == "0.15.8"
    assert version["created_at"].endswith("Z")
    assert len(version["openapi_schema"]["components"]["schemas"]["Input"]["properties"]) == 21


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/predictions/nobody"),
        ("POST", "/v1/predictions/nobody/cancel"),
        ("POST", "/v1/models/no/body/predictions"),
        ("GET", "/v1/models/no/body/versions/1"),
        ("GET", "/v1/models/fofr/flux-handwriting-and-sketch/versions/embedded"),
        ("GET", "/v1/nothing"),
    ],
)
async def test_what_is_not_there_is_a_404_problem(method: str, path: str) -> None:
    async with house(FakePool(ONE_IMAGE)).http as client:
        missing = await client.request(method, path, json={"input": CAT} if method == "POST" else None)
    assert (missing.status_code, missing.headers["Content-Type"]) == (404, PROBLEM)
    assert missing.json()["status"] == 404
    assert missing.json()["detail"]


async def test_a_wrong_method_is_a_405_problem_that_names_the_right_one() -> None:
    async with house(FakePool(ONE_IMAGE)).http as client:
        wrong = await client.delete("/v1/predictions")
    assert (wrong.status_code, wrong.headers["Content-Type"], wrong.headers["Allow"]) == (405, PROBLEM, "POST")


async def test_an_unknown_version_is_the_problem_that_clients_know() -> None:
    refused = await post(house(FakePool(ONE_IMAGE)), {"input": CAT, "version": "nobody/knows:it"})
    assert (refused.status_code, refused.headers["Content-Type"]) == (422, PROBLEM)
    assert refused.json()["title"] == "Invalid version or not permitted"
    assert "nobody/knows:it" in refused.json()["detail"]


def fields(refused: httpx.Response) -> list[str]:
    body = refused.json()
    assert (refused.status_code, refused.headers["Content-Type"]) == (422, PROBLEM)
    assert (body["title"], body["status"]) == ("Input validation failed", 422)
    assert all(fault["type"] and fault["description"] for fault in body["invalid_fields"])
    assert all(fault["description"] in body["detail"] for fault in body["invalid_fields"])
    return [fault["field"] for fault in body["invalid_fields"]]


@pytest.mark.parametrize(
    ("inputs", "faulty"),
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
async def test_faulty_inputs_are_all_named(inputs: dict[str, Any], faulty: list[str]) -> None:
    refused = await post_text(house(FakePool(ONE_IMAGE)), {"input": inputs})
    assert fields(refused) == [f"input.{field}" for field in faulty]


async def test_a_picture_over_the_limit_by_its_header_is_refused_before_it_is_decoded() -> None:
    settings = Settings(max_image_megapixels=0.01)
    refused = await post(house(FakePool(ONE_IMAGE), settings), {"input": CAT | {"image": data_uri(png(200, 100))}})
    assert fields(refused) == ["input.image"]
    assert "0.01 megapixels" in refused.json()["detail"]


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
async def test_a_picture_at_a_private_address_fails_the_prediction_with_a_reason(url: str) -> None:
    pool = FakePool(ONE_IMAGE)
    home = house(pool, fetcher=UrlFetcher(Settings().fetch))
    failed = (await post(home, {"input": CAT | {"image": url}}, WAIT)).json()
    assert failed["status"] == "failed"
    assert "its address is not public" in failed["error"]
    assert "secret" not in failed["error"]
    assert pool.calls == []


@pytest.mark.parametrize(
    ("body", "faulty"),
    [
        ({}, ["input"]),
        ({"input": None}, ["input"]),
        ({"input": [CAT]}, ["input"]),
        ({"input": CAT, "version": 7}, ["version"]),
        ({"input": CAT, "stream": "yes"}, ["stream"]),
        ({"input": CAT, "inputs": CAT, "prompt": "a"}, ["inputs", "prompt"]),
        (
            {"input": CAT, "webhook": "https://me.example/", "webhook_events_filter": ["start"]},
            ["webhook", "webhook_events_filter"],
        ),
        ({"input": CAT, "webhook_completed": "https://me.example/"}, ["webhook_completed"]),
        ({"input": CAT, "\ud800" + "x" * 99: 1}, ["\\ud800" + "x" * 62 + "…"]),
    ],
)
async def test_faulty_bodies_are_all_named(body: dict[str, Any], faulty: list[str]) -> None:
    assert fields(await post_text(house(FakePool(ONE_IMAGE)), body)) == faulty


async def test_a_version_in_the_body_has_no_place_beside_a_model_in_the_path() -> None:
    path = "/v1/models/fofr/flux-handwriting-and-sketch/predictions"
    assert fields(await post(house(FakePool(ONE_IMAGE)), {"input": CAT, "version": "d592f697"}, path=path)) == [
        "version"
    ]


async def post_text(home: House, body: object) -> httpx.Response:
    """Like `post`, for what strict encoders refuse: NaN, Infinity and half surrogate pairs."""
    async with home.http as client:
        return await client.post("/v1/predictions", content=json.dumps(body))


async def test_a_full_pool_answers_429_with_a_time() -> None:
    settings = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})
    home = house(FakePool(ONE_IMAGE, going=False), settings)
    await post(home, {"input": CAT})
    full = await post(home, {"input": CAT})
    assert (full.status_code, full.headers["Content-Type"], full.headers["Retry-After"]) == (429, PROBLEM, "1")
    assert (full.json()["title"], full.json()["retry_after"]) == ("Too many requests", 1)


async def test_a_service_that_is_not_ready_answers_503() -> None:
    early = await post(house(FakePool(ONE_IMAGE), opened=False), {"input": CAT})
    assert (early.status_code, early.json()["title"]) == (503, "Service unavailable")


async def test_no_bad_request_takes_a_place_in_the_pool() -> None:
    home = house(FakePool(ONE_IMAGE), Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)}))
    bad: list[dict[str, Any]] = [
        {"input": {}},
        {"input": CAT | {"image": "data:,x"}},
        {"input": CAT, "version": "x"},
        {},
    ]
    for body in bad:
        assert (await post(home, body)).status_code == 422
    assert (await post(home, {"input": CAT}, WAIT)).json()["status"] == "succeeded"


async def test_predictions_are_listed_newest_first_a_page_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.api.replicate.PAGE_LENGTH", 2)
    home = house(FakePool(ONE_IMAGE))
    ids = [(await home.create({**CAT, "seed": seed})).id for seed in range(3)]
    first = (await get(home, "/v1/predictions")).json()
    assert [each["id"] for each in first["results"]] == ids[:0:-1]
    assert first["previous"] is None
    path = first["next"].removeprefix("http://127.0.0.1:8000")
    last = (await get(home, path)).json()
    assert [each["id"] for each in last["results"]] == ids[:1]
    assert last["next"] is None
    assert (await get(home, "/v1/predictions?cursor=nothing")).status_code == 404


async def test_a_list_shows_urls_and_leaves_data_uris_out() -> None:
    for delivery, shown in (("url", True), ("data", False)):
        settings = Settings(outputs=OutputSettings(delivery=delivery))
        home = house(FakePool(ONE_IMAGE), settings)
        made = await home.create(CAT)
        await home.desk.wait(made.id)
        listed = (await get(home, "/v1/predictions")).json()["results"][0]
        assert (listed["output"] is not None) is shown
        assert listed["data_removed"] is False
