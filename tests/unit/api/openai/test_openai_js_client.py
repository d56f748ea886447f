"""OpenAI's official JavaScript client against the application on a loopback port."""

import base64
import io
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image

from serve.events import ImageFlagged, Started
from serve.settings import PoolSettings, Settings
from tests.app_factory import make_app
from tests.fakes import DONE, ONE_IMAGE, WEBP, FakePool
from tests.js_client import JsClient

ENCODED = base64.b64encode(WEBP).decode()
FLAGGED = (Started(), ImageFlagged(0), DONE)


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    """An image with a transparent part, which is its own mask."""
    image = Image.new("RGBA", (320, 256), "red")
    image.paste((0, 0, 0, 0), (0, 0, 100, 256))
    file = io.BytesIO()
    image.save(file, "png")
    (tmp_path / "boat.png").write_bytes(file.getvalue())
    return tmp_path / "boat.png"


@asynccontextmanager
async def service(pool: FakePool, settings: Settings | None = None) -> AsyncGenerator[str, None]:
    app = make_app(pool, settings, token="secret")
    async with app.listening() as url:
        yield url


async def run(js_client: JsClient, case: str, url: str, image: str | Path = "") -> object:
    return await js_client.run(case, url, image, script="openai_cases.js")


async def test_generate_returns_images(js_client: JsClient) -> None:
    pool = FakePool(ONE_IMAGE)
    async with service(pool) as url:
        assert await run(js_client, "generate", url) == [ENCODED]
    assert (pool.calls[0][0].steps, pool.calls[0][0].seeds) == (2, (5,))


async def test_edit_with_a_mask(js_client: JsClient, image_file: Path) -> None:
    pool = FakePool(ONE_IMAGE)
    async with service(pool) as url:
        assert await run(js_client, "edit", url, image_file) == [ENCODED]
    [(plan, image, mask)] = pool.calls
    assert (plan.size, plan.steps) == ((512, 512), 2)
    assert image is not None
    assert mask is not None


async def test_images_are_streamed(js_client: JsClient, image_file: Path) -> None:
    async with service(FakePool(ONE_IMAGE)) as url:
        generated = await run(js_client, "stream", url)
        edited = await run(js_client, "streamedEdit", url, image_file)
    assert generated == [{"type": "image_generation.completed", "content": ENCODED}]
    assert edited == [{"type": "image_edit.completed", "content": ENCODED}]


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("failure", {"name": "BadRequestError", "status": 400, "code": "moderation_blocked", "param": None}),
        ("streamFailure", {"name": "APIError", "status": None, "code": "moderation_blocked", "param": None}),
        ("invalid", {"name": "BadRequestError", "status": 400, "code": "invalid_value", "param": "n"}),
        ("unknownModel", {"name": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}),
    ],
)
async def test_errors_have_the_classes_of_the_client(js_client: JsClient, case: str, error: object) -> None:
    async with service(FakePool(FLAGGED)) as url:
        assert await run(js_client, case, url) == error


async def test_full_pool_is_a_rate_limit_error(js_client: JsClient) -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool, Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)}), token="secret")
    async with app.listening() as url:
        await app.create({"prompt": "a cat"})
        error = await run(js_client, "failure", url)
    assert error == {"name": "RateLimitError", "status": 429, "code": "rate_limit_exceeded", "param": None}
