"""Webhooks of the Replicate API and the Cog API, from the request to a receiver on a loopback port."""

import json
import re
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from replicate.webhook import InvalidSignatureError, Webhooks, WebhookSigningSecret

from serve.events import Event, Started
from serve.settings import DeploymentSettings, Settings, WebhookSettings
from tests.access import add_token
from tests.app_factory import AppUnderTest, delivering, make_app
from tests.fakes import ONE_IMAGE, FakePool
from tests.webhook_receiver import Received, webhook_receiver

CAT = {"prompt": "a cat", "seed": 7, "num_inference_steps": 2}
DEPLOYMENT = DeploymentSettings(owner="studio", name="fast", model="black-forest-labs/flux-schnell")
SETTINGS = Settings(webhooks=WebhookSettings(allowed_hosts=("127.0.0.1",)), deployments=(DEPLOYMENT,))
REPLICATE_PATHS = (
    "/v1/predictions",
    "/v1/models/black-forest-labs/flux-dev/predictions",
    "/v1/deployments/studio/fast/predictions",
)
COMPLETED = ["completed"]


async def post(
    app: AppUnderTest, path: str, body: dict[str, Any], headers: Mapping[str, str] | None = None
) -> httpx.Response:
    async with app.http as client:
        return await client.post(path, json={"input": CAT} | body, headers=headers)


async def get_secret(app: AppUnderTest, headers: Mapping[str, str] | None = None) -> WebhookSigningSecret:
    async with app.http as client:
        return WebhookSigningSecret(**(await client.get("/v1/webhooks/default/secret", headers=headers)).json())


def validate(received: Received, secret: WebhookSigningSecret, content: bytes | None = None) -> None:
    """Raises as the official client does."""
    body = (content or received.content).decode()
    Webhooks.validate(headers=received.headers, body=body, secret=secret, tolerance=60)


@pytest.mark.parametrize("path", REPLICATE_PATHS)
async def test_prediction_arrives_as_the_api_returns_it(path: str) -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS)
    async with webhook_receiver() as receiver, delivering(app):
        created = (await post(app, path, {"webhook": receiver.url, "webhook_events_filter": COMPLETED})).json()
        [received] = await receiver.wait_for(1)
        async with app.http as client:
            assert received.body == (await client.get(f"/v1/predictions/{created['id']}")).json()
    assert received.body["status"] == "succeeded"
    assert len(received.body["output"]) == 1


async def test_official_client_verifies_every_event_and_rejects_forged_ones() -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS)
    async with webhook_receiver() as receiver, delivering(app):
        await post(app, "/v1/predictions", {"webhook": receiver.url})
        received = await receiver.wait_for(2)
        secret = await get_secret(app)
    for each in received:
        validate(each, secret)
        with pytest.raises(InvalidSignatureError):
            validate(each, secret, each.content.replace(b"a cat", b"a dog"))
    assert [each.body["status"] for each in received][-1] == "succeeded"


async def test_secret_is_a_random_one_of_this_service() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    first, again = await get_secret(app), await get_secret(app)
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{32}", first.key)
    assert first == again
    assert first != await get_secret(make_app(FakePool(ONE_IMAGE)))


async def test_webhook_is_signed_with_the_secret_of_its_token() -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS, token="sesame")
    (_, owner), (_, other) = await add_token(app.database), await add_token(app.database)
    operator = {"Authorization": "Bearer sesame"}
    async with webhook_receiver() as receiver, delivering(app):
        await post(app, "/v1/predictions", {"webhook": receiver.url, "webhook_events_filter": COMPLETED}, owner)
        [received] = await receiver.wait_for(1)
    validate(received, await get_secret(app, owner))
    for headers in (other, operator):
        with pytest.raises(InvalidSignatureError):
            validate(received, await get_secret(app, headers))


async def test_secret_needs_the_token() -> None:
    app = make_app(FakePool(ONE_IMAGE), token="sesame")
    async with app.http as client:
        assert (await client.get("/v1/webhooks/default/secret")).status_code == 401


@pytest.mark.parametrize("headers", [{}, {"Prefer": "respond-async"}])
async def test_cog_api_sends_its_own_prediction_object(headers: dict[str, str]) -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS)
    async with webhook_receiver() as receiver, delivering(app):
        body = {"input": CAT, "webhook": receiver.url, "webhook_events_filter": ["start", "completed"]}
        async with app.http as client:
            await client.post("/predictions", json=body, headers=headers)
        received = await receiver.wait_for(2)
    assert [each.body["status"] for each in received] == ["processing", "succeeded"]
    assert received[-1].body["input"]["num_outputs"] == 1
    assert "urls" not in received[-1].body


async def test_cancelled_prediction_is_completed() -> None:
    app = make_app(FakePool(ONE_IMAGE, may_start=False), SETTINGS)
    async with webhook_receiver() as receiver, delivering(app):
        created = (await post(app, "/v1/predictions", {"webhook": receiver.url})).json()
        await app.service.cancel(created["id"])
        [received] = await receiver.wait_for(1)
    assert received.body["status"] == "canceled"


async def test_failed_prediction_is_completed_with_its_error() -> None:
    events: tuple[Event | BaseException, ...] = (Started(), RuntimeError("internals"))
    app = make_app(FakePool(events), SETTINGS)
    async with webhook_receiver() as receiver, delivering(app):
        await post(app, "/v1/predictions", {"webhook": receiver.url, "webhook_events_filter": COMPLETED})
        [received] = await receiver.wait_for(1)
    assert received.body["status"] == "failed"
    assert "internals" not in received.content.decode()


@pytest.mark.parametrize("body", [{}, {"webhook": None}, {"webhook_events_filter": COMPLETED}])
async def test_prediction_without_a_webhook_sends_nothing(body: dict[str, Any]) -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS)
    created = (await post(app, "/v1/predictions", body)).json()
    assert (await app.service.get(created["id"])).webhook is None


async def test_webhook_with_an_empty_filter_sends_nothing() -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS)
    body = {"webhook": "https://me.example", "webhook_events_filter": []}
    created = (await post(app, "/v1/predictions", body)).json()
    assert (await app.service.get(created["id"])).webhook is None


@pytest.mark.parametrize("path", [*REPLICATE_PATHS, "/predictions"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"webhook": ""}, "webhook"),
        ({"webhook": "ftp://me.example"}, "webhook"),
        ({"webhook": "https://user:password@me.example"}, "webhook"),
        ({"webhook": "https://me.example/" + "x" * 2000}, "webhook"),
        ({"webhook": ["https://me.example"]}, "webhook"),
        ({"webhook": "https://me.example", "webhook_events_filter": ["end"]}, "webhook_events_filter"),
        ({"webhook": "https://me.example", "webhook_events_filter": [["start"]]}, "webhook_events_filter"),
        ({"webhook": "https://me.example", "webhook_events_filter": "start"}, "webhook_events_filter"),
    ],
)
async def test_invalid_webhook_is_rejected(path: str, body: dict[str, Any], field: str) -> None:
    app = make_app(FakePool(ONE_IMAGE), SETTINGS)
    response = await post(app, path, body)
    assert response.status_code == 422
    assert field in json.dumps(response.json())
    assert app.prediction_ids == []
