"""Version 2 of Replicate's official Python client against the application on a loopback port."""

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serve.events import ImageFlagged, Started
from serve.settings import DeploymentSettings, Settings
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import DONE, ONE_IMAGE, WEBP, FakePool
from tests.images import png
from tests.python2_client import Python2Client

SEED = "flux-handwriting-and-sketch"
IMAGE = png(200, 100)
DEPLOYMENT = DeploymentSettings(owner="studio", name="fast", model="black-forest-labs/flux-schnell")


@asynccontextmanager
async def service(pool: FakePool, **settings: Any) -> AsyncGenerator[tuple[AppUnderTest, str], None]:
    app = make_app(pool, Settings(deployments=(DEPLOYMENT,), **settings), token="secret")
    async with app.listening() as url:
        yield app, url


async def run(client: Python2Client, case: str, pool: FakePool | None = None, image: str | Path = "") -> Any:
    async with service(pool or FakePool(ONE_IMAGE)) as (_, url):
        return await client.run(case, url, image)


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "boat.png"
    path.write_bytes(IMAGE)
    return path


@pytest.mark.parametrize("case", ["text", "textWithVersion", "polled", "async"])
async def test_run_returns_files(python2_client: Python2Client, case: str) -> None:
    assert await run(python2_client, case) == [base64.b64encode(WEBP).decode()]


async def test_use_reads_the_schema_and_returns_outputs(python2_client: Python2Client) -> None:
    [uri] = await run(python2_client, "use")
    assert uri.endswith(base64.b64encode(WEBP).decode())


async def test_run_polls_after_its_wait_has_expired_and_creates_one_prediction(python2_client: Python2Client) -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)

    async def start_after_creation(app: AppUnderTest) -> None:
        while not pool.calls:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        pool.may_start.set()

    async with service(pool, max_wait_s=0.05) as (app, url), asyncio.TaskGroup() as group:
        group.create_task(start_after_creation(app))
        assert await python2_client.run("text", url) == [base64.b64encode(WEBP).decode()]
    assert len(app.prediction_ids) == 1


async def test_local_file_is_an_input_image(python2_client: Python2Client, image_file: Path) -> None:
    pool = FakePool(ONE_IMAGE)
    assert await run(python2_client, "file", pool, image_file)
    assert pool.calls[0][0].size == (208, 96)


async def test_failed_prediction_is_an_error(python2_client: Python2Client) -> None:
    error = await run(python2_client, "failure", FakePool((Started(), ImageFlagged(0), DONE)))
    assert error["type"] == "ModelError"
    assert "NSFW" in error["message"]


@pytest.mark.parametrize(
    ("case", "word"), [("invalid", "num_outputs"), ("longWait", "Prefer"), ("unknownVersion", "Invalid version")]
)
async def test_rejected_request_is_an_error_with_its_reason(
    python2_client: Python2Client, case: str, word: str
) -> None:
    error = await run(python2_client, case)
    assert error["status"] == 422
    assert word in error["message"]


async def test_headers_of_a_prediction_are_applied(python2_client: Python2Client) -> None:
    assert await run(python2_client, "headers") == {"same": True, "deadline": True, "stream": True}


async def test_prediction_is_cancelled_and_listed(python2_client: Python2Client) -> None:
    assert await run(python2_client, "cancel", FakePool(ONE_IMAGE, may_start=False)) == [
        "starting",
        "canceled",
        "canceled",
    ]
    assert await run(python2_client, "list") is True


async def test_files_are_created_read_and_deleted(python2_client: Python2Client, image_file: Path) -> None:
    files = await run(python2_client, "files", image=image_file)
    assert files == {"created": files["found"], "found": files["found"], "size": len(IMAGE), "missing": 404}


async def test_models_and_versions_are_read(python2_client: Python2Client) -> None:
    found = await run(python2_client, "models")
    assert (found["owner"], found["version"], found["versions"]) == ("fofr", "d592f697", ["d592f697"])
    assert {"Input", "Output"} <= set(found["schemas"])
    assert "black-forest-labs/flux-schnell" in found["models"]
    assert found["found"] == [SEED]
    assert SEED in found["readme"]
    assert found["examples"] == 0


async def test_search_collections_hardware_and_account_are_read(python2_client: Python2Client) -> None:
    found = await run(python2_client, "discovery")
    assert (found["found"], found["collections"]) == ([SEED], ["text-to-image"])
    assert SEED in found["models"]
    assert found["hardware"] == ["dev-bf16", "dev-fp8", "schnell"]
    assert found["account"] == "organization"


async def test_deployments_are_read_and_run(python2_client: Python2Client) -> None:
    assert await run(python2_client, "deployments") == {
        "listed": ["fast"],
        "model": "black-forest-labs/flux-schnell",
        "hardware": "schnell",
        "status": "succeeded",
        "deleted": 403,
    }
