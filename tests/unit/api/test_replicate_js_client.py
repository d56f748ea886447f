"""Replicate's official JavaScript client against the application on a loopback port."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serve.events import ImageFlagged, Started
from serve.settings import DeploymentSettings, Settings, WebhookSettings
from tests.app_factory import delivering, make_app
from tests.asgi_server import listen, outputs_at
from tests.fakes import DONE, ONE_IMAGE, WEBP, FakeFetcher, FakeLoraCache, FakePool
from tests.images import png
from tests.js_client import JsClient
from tests.webhook_receiver import webhook_receiver

IMAGE = png(200, 100)
IMAGE_URL = "https://images.example/boat.png"
MODEL = "fofr/flux-handwriting-and-sketch"


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "boat.png"
    path.write_bytes(IMAGE)
    return path


@asynccontextmanager
async def service(pool: FakePool, loras: FakeLoraCache | None = None, **settings: Any) -> AsyncGenerator[str, None]:
    """Runs the application with a token, which the client sends."""
    listener = listen()
    app_settings = Settings(**{"outputs": outputs_at(listener), **settings})
    app = make_app(pool, app_settings, FakeFetcher({IMAGE_URL: IMAGE}), loras, token="secret")
    async with app.listening(listener) as url:
        yield url


@pytest.mark.parametrize("case", ["text", "textWithVersion", "polled"])
async def test_run_returns_files(js_client: JsClient, case: str) -> None:
    async with service(FakePool(ONE_IMAGE)) as url:
        assert await js_client.run(case, url) == [base64.b64encode(WEBP).decode()]


async def test_run_polls_after_its_wait_has_expired(js_client: JsClient) -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)

    async def start_after_creation() -> None:
        while not pool.calls:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        pool.may_start.set()

    async with service(pool, max_wait_s=0.05) as url, asyncio.TaskGroup() as group:
        group.create_task(start_after_creation())
        assert await js_client.run("text", url) == [base64.b64encode(WEBP).decode()]


@pytest.mark.parametrize("case", ["buffer", "blob", "file", "dataUri"])
async def test_local_file_is_an_input_image(js_client: JsClient, image_file: Path, case: str) -> None:
    pool = FakePool(ONE_IMAGE)
    async with service(pool) as url:
        assert await js_client.run(case, url, image_file)
    [(plan, image, _)] = pool.calls
    assert plan.size == (208, 96)
    assert image is not None


async def test_url_is_an_input_image(js_client: JsClient) -> None:
    pool = FakePool(ONE_IMAGE)
    async with service(pool) as url:
        assert await js_client.run("url", url, IMAGE_URL)
    assert pool.calls[0][0].size == (208, 96)


async def test_local_file_is_a_lora(js_client: JsClient, image_file: Path) -> None:
    loras = FakeLoraCache()
    async with service(FakePool(ONE_IMAGE), loras) as url:
        assert await js_client.run("bufferAsLora", url, image_file)
    [((name,), _, _)] = loras.calls
    assert name.startswith("/v1/files/")


async def test_failed_prediction_is_an_error(js_client: JsClient) -> None:
    async with service(FakePool((Started(), ImageFlagged(0), DONE))) as url:
        assert "NSFW" in (await js_client.run("failure", url))["message"]


async def test_invalid_input_is_an_error_with_its_field(js_client: JsClient) -> None:
    async with service(FakePool(ONE_IMAGE)) as url:
        error = await js_client.run("invalid", url)
    assert error["status"] == 422
    assert "num_outputs" in error["message"]


async def test_stream_has_outputs_and_an_end(js_client: JsClient) -> None:
    """The client does not send its token with the request for a stream."""
    async with service(FakePool(ONE_IMAGE)) as url:
        events = await js_client.run("stream", url)
    assert [each["event"] for each in events if each["event"] != "logs"] == ["output", "done"]
    [output] = [each["data"] for each in events if each["event"] == "output"]
    assert output.endswith(base64.b64encode(WEBP).decode())


async def test_stream_of_a_failed_prediction_is_an_error(js_client: JsClient) -> None:
    async with service(FakePool((Started(), ImageFlagged(0), DONE))) as url:
        assert "NSFW" in (await js_client.run("streamFailure", url))["message"]


async def test_prediction_is_cancelled(js_client: JsClient) -> None:
    async with service(FakePool(ONE_IMAGE, may_start=False)) as url:
        statuses = await js_client.run("cancel", url)
    assert statuses == ["starting", "canceled", "canceled", "canceled"]


async def test_predictions_are_listed(js_client: JsClient) -> None:
    async with service(FakePool(ONE_IMAGE)) as url:
        assert await js_client.run("list", url) is True


async def test_files_are_created_read_listed_and_deleted(js_client: JsClient, image_file: Path) -> None:
    async with service(FakePool(ONE_IMAGE)) as url:
        files = await js_client.run("files", url, image_file)
    created = files["created"]
    assert (created["size"], created["metadata"]) == (len(IMAGE), {"album": "boats"})
    assert created["checksums"]["sha256"] == hashlib.sha256(IMAGE).hexdigest()
    assert files["read"] == created
    assert (files["listed"], files["deleted"], files["missing"]) == ([created["id"]], True, 404)


async def test_models_and_versions_are_read(js_client: JsClient) -> None:
    async with service(FakePool(ONE_IMAGE)) as url:
        found = await js_client.run("models", url)
    assert (found["model"]["owner"], found["model"]["latest_version"]) == ("fofr", found["version"])
    assert "Input" in found["version"]["openapi_schema"]["components"]["schemas"]
    assert found["versions"] == ["d592f697"]
    assert MODEL in found["models"]


async def test_account_is_read(js_client: JsClient) -> None:
    async with service(FakePool(ONE_IMAGE)) as url:
        account = await js_client.run("account", url)
    assert account["type"] == "organization"
    assert account["username"]


async def test_search_collections_and_hardware_are_read(js_client: JsClient) -> None:
    async with service(FakePool(ONE_IMAGE)) as url:
        found = await js_client.run("discovery", url)
    assert found["found"] == ["flux-handwriting-and-sketch"]
    assert found["collections"] == ["text-to-image"]
    assert "flux-handwriting-and-sketch" in found["collection"]
    assert found["hardware"] == ["dev-bf16", "dev-fp8", "schnell"]


async def test_deployments_are_read_and_run(js_client: JsClient) -> None:
    deployment = DeploymentSettings(owner="studio", name="fast", model="black-forest-labs/flux-schnell")
    async with service(FakePool(ONE_IMAGE), deployments=(deployment,)) as url:
        found = await js_client.run("deployments", url)
    assert found["listed"] == ["fast"]
    assert found["deployment"]["current_release"]["configuration"]["hardware"] == "schnell"
    assert (found["status"], found["model"]) == ("succeeded", "black-forest-labs/flux-schnell")
    assert found["refused"] == [403, 403, 403, 403]


async def test_other_endpoints_are_errors_that_name_the_path(js_client: JsClient) -> None:
    async with service(FakePool(ONE_IMAGE)) as url:
        error = await js_client.run("notServed", url)
    assert error["status"] == 404
    assert "does not serve GET /v1/trainings" in error["message"]


async def test_webhook_is_verified_with_the_secret(js_client: JsClient) -> None:
    webhooks = WebhookSettings(allowed_hosts=("127.0.0.1",))
    app = make_app(FakePool(ONE_IMAGE), Settings(webhooks=webhooks), token="secret")
    async with webhook_receiver() as receiver, delivering(app), app.listening() as url:
        body = {"input": {"prompt": "a cat"}, "webhook": receiver.url, "webhook_events_filter": ["completed"]}
        async with app.http as client:
            await client.post("/v1/predictions", json=body, headers={"Authorization": "Bearer secret"})
        [received] = await receiver.wait_for(1)
        content = received.content.decode()
        request = {"headers": received.headers, "body": content}
        forged = {"headers": received.headers, "body": content.replace("succeeded", "failed")}
        assert await js_client.run("validateWebhooks", url, json.dumps([request, forged])) == [True, False]
