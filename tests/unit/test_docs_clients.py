"""The examples of HTTP clients in README.md and docs/ run against the application."""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from serve.settings import Settings
from tests.app_factory import close_apps, make_app
from tests.asgi_server import listen, outputs_at
from tests.drawing_pool import DrawingPool
from tests.images import png
from tests.js_client import JsClient
from tests.markdown import blocks

URL = "http://127.0.0.1:8000"
IMAGE = png(320, 256)
TIMEOUT_S = 120


async def run(folder: Path, command: list[str], text: str, environment: Mapping[str, str] | None = None) -> DrawingPool:
    """Runs an example in `folder`, with the address of the application. Returns the application's pool."""
    assert URL in text
    for name in ("boat.png", "boat-0.webp"):
        (folder / name).write_bytes(IMAGE)
    listener, pool = listen(), DrawingPool()
    app = make_app(pool, Settings(outputs=outputs_at(listener)))
    async with app.listening(listener) as url:
        process = await asyncio.create_subprocess_exec(
            *command, text.replace(URL, url), cwd=folder, env={**os.environ, **(environment or {})}, stderr=-1
        )
        _, errors = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        assert process.returncode == 0, errors.decode()
        for prediction_id in app.prediction_ids:
            assert (await app.service.wait(prediction_id, TIMEOUT_S)).status == "succeeded"
    await close_apps()
    return pool


@pytest.mark.parametrize("text", [block for block in blocks("python") if URL in str(block.values[0])])
async def test_python_example_runs(text: str, tmp_path: Path) -> None:
    pool = await run(tmp_path, [sys.executable, "-c"], text)
    image, _ = pool.images[-1]
    assert (image is not None) is ("storm" in text)


@pytest.mark.parametrize("text", blocks("js"))
async def test_javascript_example_runs(text: str, tmp_path: Path, js_client: JsClient) -> None:
    environment = {"NODE_PATH": str(js_client.folder / "node_modules")}
    pool = await run(tmp_path, ["node", "-e"], f"(async () => {{\n{text}\n}})()", environment)
    [(image, _)] = pool.images
    assert image is not None
