"""`Idempotency-Key` and `Cancel-After` of requests that create predictions."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from serve.api.creation_headers import parse_cancel_after
from serve.api.http_messages import InvalidHeader
from serve.settings import PoolSettings, Settings
from tests.access import add_token
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import ONE_IMAGE, FakePool

CAT = {"prompt": "a cat", "seed": 7}
MODEL = "/v1/models/black-forest-labs/flux-dev/predictions"
KEY = "3f0c1a52-9d3e-4f7b-8a70-5c8e"


async def post(
    app: AppUnderTest, inputs: dict[str, Any], path: str = "/v1/predictions", **headers: str
) -> httpx.Response:
    """Underscores in the names of `headers` become hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with app.http as client:
        return await client.post(path, json={"input": inputs}, headers=named)


async def test_same_key_and_body_is_one_prediction() -> None:
    settings = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool, settings)
    first = await post(app, CAT, Idempotency_Key=KEY)
    again = await post(app, dict(reversed(CAT.items())), Idempotency_Key=KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["created_at"] == first.json()["created_at"]
    pool.may_start.set()
    ended = await post(app, CAT, Idempotency_Key=KEY, Prefer="wait=5")
    assert (ended.json()["id"], ended.json()["status"]) == (first.json()["id"], "succeeded")
    assert len(pool.calls) == 1


@pytest.mark.parametrize(("inputs", "path"), [({**CAT, "seed": 8}, "/v1/predictions"), (CAT, MODEL)])
async def test_same_key_with_another_request_is_rejected(inputs: dict[str, Any], path: str) -> None:
    app = make_app(FakePool(ONE_IMAGE))
    await post(app, CAT, Idempotency_Key=KEY)
    rejected = await post(app, inputs, path, Idempotency_Key=KEY)
    assert (rejected.status_code, rejected.json()["title"]) == (422, "Idempotency key reused")
    assert KEY in rejected.json()["detail"]


async def test_each_token_has_keys_of_its_own() -> None:
    app = make_app(FakePool(ONE_IMAGE), token="operator")
    (_, first), (_, second) = await add_token(app.database), await add_token(app.database)
    responses = [await post(app, CAT, Idempotency_Key=KEY, **headers) for headers in (first, second, first, second)]
    assert {each.status_code for each in responses} == {201}
    ids = [each.json()["id"] for each in responses]
    assert ids[:2] == ids[2:]
    assert ids[0] != ids[1]
    other = await post(app, {**CAT, "seed": 8}, Idempotency_Key=KEY, Authorization="Bearer operator")
    assert other.status_code == 201


async def test_other_keys_are_other_predictions() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    created = [
        await post(app, CAT, Idempotency_Key=KEY),
        await post(app, CAT, Idempotency_Key="b"),
        await post(app, CAT),
    ]
    assert len({each.json()["id"] for each in created}) == 3


async def test_processes_that_get_the_same_request_at_once_create_one_prediction() -> None:
    pool = FakePool(ONE_IMAGE)
    app = make_app(pool)
    other = make_app(pool, state=app.state)
    created = await asyncio.gather(*(post(each, CAT, Idempotency_Key=KEY) for each in (app, other) * 5))
    assert {each.status_code for each in created} == {201}
    assert len({each.json()["id"] for each in created}) == 1
    assert len(app.prediction_ids + other.prediction_ids) == 1


async def test_rejected_request_does_not_use_up_its_key() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    assert (await post(app, {"seed": 7}, Idempotency_Key=KEY)).status_code == 422
    assert (await post(app, CAT, Idempotency_Key=KEY)).status_code == 201


@pytest.mark.parametrize("key", ["", "two words", "x" * 256])
async def test_invalid_key_is_rejected(key: str) -> None:
    rejected = await post(make_app(FakePool(ONE_IMAGE)), CAT, Idempotency_Key=key)
    assert rejected.status_code == 422
    assert rejected.json()["invalid_fields"][0]["field"] == "Idempotency-Key"


async def test_deadline_counts_from_the_creation() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    created = (await post(app, CAT, Cancel_After="1m")).json()
    lifetime = datetime.fromisoformat(created["deadline"]) - datetime.fromisoformat(created["created_at"])
    assert lifetime == timedelta(minutes=1)
    assert "deadline" not in (await post(app, CAT)).json()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("1m", 60), ("10m", 600), ("90", 90), ("1h30m", 5400), ("1h2m3s", 3723), ("5s", 5), ("24h", 86400)],
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_cancel_after(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "4s", "0", "-5s", "1.5m", "25h", "86401", "1m1h", "5 m", "9" * 400, "1d", "٦٠"]
)
def test_other_durations_are_rejected(text: str) -> None:
    with pytest.raises(InvalidHeader, match="24h"):
        parse_cancel_after(text)


async def test_rejected_duration_names_its_header() -> None:
    rejected = await post(make_app(FakePool(ONE_IMAGE)), CAT, Cancel_After="1s")
    assert rejected.status_code == 422
    assert rejected.json()["invalid_fields"][0]["field"] == "Cancel-After"
