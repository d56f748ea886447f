"""The code on screen in a real browser: run as it was copied, it gives the same images."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.app_factory import AppUnderTest, make_app
from tests.browser import Browser
from tests.drawing_pool import DrawingPool, draw
from tests.js_client import JsClient

GENERATE, OUTPUT, CODE = "[data-test=generate]", "[data-test=output]", "[data-test=code]"
TIMEOUT_S = 60
TOKEN = "secret"


async def copied(browser: Browser, language: str) -> str:
    """The code that the button copies."""
    await browser.click(f"[data-tab={language}]")
    await browser.script(
        "window.copied = null; navigator.clipboard.writeText = async (text) => { window.copied = text }"
    )
    await browser.click("[data-test=copy-code]")
    code: str = await browser.wait_for("window.copied")
    assert code == await browser.script(f"return document.querySelector('{CODE}').textContent")
    return code


async def run(folder: Path, *command: str) -> str:
    env = {**os.environ, "FLUX_SERVE_TOKEN": TOKEN, "PYTHONWARNINGS": "ignore"}
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=env, stdout=-1, stderr=-1)
    async with asyncio.timeout(TIMEOUT_S):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def open_page(browser: Browser, url: str, image: Path | None = None) -> None:
    """Generates an image from an unusual request, and opens its code."""
    await browser.open(url + "/playground")
    await browser.type("#token", TOKEN)
    await browser.click(".token-dialog .primary")
    await browser.type("#input-prompt", 'it\'s a "red" boat \\ $HOME `x` ü')
    await browser.type("[data-test=number-num_inference_steps]", "6")
    await browser.click("#input-aspect_ratio input[value='16:9']")
    if image is not None:
        await browser.choose_file("[data-test=image-file]", image)
        await browser.drag(".mask-overlay", (0.3, 0.3), (0.6, 0.3))
    await browser.click(GENERATE)
    await browser.wait_for_text("[data-test=status]", "Done")
    await browser.click("[data-tab=code]")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.webp"
    path.write_bytes(draw((512, 512), seed=3))
    return path


def check_same_calls(pool: DrawingPool, count: int) -> None:
    # Only the page asks for previews, which change nothing in the images.
    first, *others = (plan.model_copy(update={"previews": 0}) for plan in pool.plans)
    assert len(others) == count
    assert [plan for plan in others if plan != first] == []
    image, mask = pool.edit(0)
    for call in range(1, count + 1):
        other_image, other_mask = pool.edit(call)
        assert (other_image == image).all()
        assert (other_mask == mask).all()


async def test_copied_code_gives_the_same_images(browser: Browser, image: Path, tmp_path: Path) -> None:
    pool = DrawingPool()
    async with make_app(pool, token=TOKEN).listening() as url:
        await open_page(browser, url, image)
        prediction: dict[str, Any] = json.loads(await run(tmp_path, "bash", "-c", await copied(browser, "curl")))
        assert prediction["status"] == "succeeded"
        for language in ("replicate", "openai"):
            await run(tmp_path, sys.executable, "-c", await copied(browser, language))
    check_same_calls(pool, 3)
    size = pool.plans[0].size
    assert size is not None
    assert (tmp_path / "image-0.webp").read_bytes() == draw(size, pool.plans[0].seeds[0])


async def test_copied_javascript_gives_the_same_images(browser: Browser, image: Path, js_client: JsClient) -> None:
    pool = DrawingPool()
    async with make_app(pool, token=TOKEN).listening() as url:
        await open_page(browser, url, image)
        (js_client.folder / "copied.mjs").write_text(await copied(browser, "javascript"))
        await run(js_client.folder, "node", "copied.mjs")
    check_same_calls(pool, 1)


async def test_copied_code_of_the_handle_names_the_model_and_the_inputs(browser: Browser) -> None:
    app: AppUnderTest = make_app(DrawingPool(), token=TOKEN)
    async with app.listening() as url:
        await open_page(browser, url)
        code = await copied(browser, "handle")
    compile(code, "copied", "exec")
    record = await app.service.get(app.prediction_ids[0])
    arguments = code.partition("predict.remote(")[2].partition(").result()")[0]
    inputs, model = eval(f"({arguments})", {})
    assert model == record.model
    assert inputs == {**record.inputs, "seed": record.metrics["seed"]}


async def test_form_is_shown_as_code_before_the_first_prediction(browser: Browser) -> None:
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(url + "/playground")
        await browser.click("[data-tab=code]")
        code = await copied(browser, "curl")
    assert '"prompt": "a red sailboat"' in code
    assert "Authorization" not in code
