"""The first session of a newcomer in the playground of a real service, in a real browser."""

import asyncio
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from serve.launch.subprocess_service import LocalService, local_service
from tests.browser import Browser, missing_programs, open_browser, open_session

GENERATE, DONE, OUTPUT = "[data-test=generate]", "[data-test=status]", "[data-test=output]"
PREVIEW, GRID_IMAGE = "[data-test=preview]", "[data-test=grid-image]"
LATE_PREVIEW = f"document.querySelector('{PREVIEW} ~ .number')?.textContent.match(/Step 2\\d/)"
"""A preview after step 20 of 28."""
COLLECT_PREVIEWS = f"""
    window.previews = new Set();
    const collect = () => document.querySelectorAll('{PREVIEW}').forEach((each) => previews.add(each.src));
    new MutationObserver(collect).observe(document.body, {{attributes: true, childList: true, subtree: true}});
"""
MASK = [(x, y + step) for y in (0.28, 0.44, 0.6) for x, step in ((0.2, 0), (0.8, 0), (0.8, 0.08), (0.2, 0.08))]
"""A line over all of the middle of the image, as shares of its width and height."""
TIMEOUT_S = 180
SIZE = (1280, 860)
"""The size of the window, and of the screenshots in README."""


@pytest.fixture(scope="module")
def service(environment: dict[str, str]) -> Iterator[LocalService]:
    with local_service(environment=environment) as running_service:
        yield running_service


async def save_screenshot(browser: Browser, path: Path) -> None:
    image = Image.open(BytesIO(await browser.screenshot())).convert("RGB")
    await asyncio.to_thread(image.save, path, quality=80, method=6)


async def wait_for_entries(browser: Browser, count: int) -> None:
    """Waits until the gallery has this many entries with images."""
    await browser.wait_for(f"document.querySelectorAll('[data-test=entry] img').length == {count}")
    await browser.wait_for_text(DONE, "Done")


@pytest.mark.slow_cluster
@pytest.mark.skipif(bool(missing_programs()), reason=f"{' and '.join(missing_programs())} not found")
async def test_newcomer_generates_inpaints_and_compares_loras(service: LocalService, tmp_path: Path) -> None:
    start_s = time.perf_counter()
    with open_session() as session:
        async with open_browser(*session, timeout_s=TIMEOUT_S) as browser:
            await browser.resize(SIZE)
            await browser.open(service.url)
            await browser.find(GENERATE)
            await save_screenshot(browser, tmp_path / "form.webp")
            await browser.script(COLLECT_PREVIEWS)
            await browser.click(GENERATE)
            await browser.wait_for(f"{LATE_PREVIEW} || document.querySelector('{OUTPUT}')")
            await save_screenshot(browser, tmp_path / "preview.webp")
            await wait_for_entries(browser, 1)
            assert await browser.script("return previews.size") > 1
            await save_screenshot(browser, tmp_path / "result.webp")

            await browser.click("[aria-label^=Edit]")
            await browser.drag(".mask-overlay", *MASK)
            await browser.type("#input-prompt", "a blue house")
            await save_screenshot(browser, tmp_path / "mask.webp")
            await browser.click(GENERATE)
            await wait_for_entries(browser, 2)
            await browser.click("[aria-label^=Compare]")
            await browser.wait_for("document.querySelector('.compare-before')?.naturalWidth == 512")
            await save_screenshot(browser, tmp_path / "inpainting.webp")

            await browser.click("[data-test=reset]")
            await browser.click("[data-tab=grid]")
            await browser.script("window.previews.clear()")
            await browser.click("[data-test=grid-run]")
            await browser.wait_for(f"document.querySelector('td {PREVIEW}, {GRID_IMAGE}')")
            await save_screenshot(browser, tmp_path / "comparison-preview.webp")
            await browser.wait_for(f"document.querySelectorAll('{GRID_IMAGE}').length == 6")
            assert await browser.script("return previews.size") > 6
            await browser.script("document.querySelector('.table-frame').scrollIntoView(); scrollBy(0, -12)")
            await save_screenshot(browser, tmp_path / "comparison.webp")
            assert await browser.problems() == []
    print(f"the session took {time.perf_counter() - start_s:.0f} s; screenshots are in {tmp_path}")

    async with httpx.AsyncClient(base_url=service.url) as client:
        predictions = (await client.get("/v1/predictions")).json()["results"]
    assert [each["status"] for each in predictions] == ["succeeded"] * 8
    *grid, inpainted, first = [each["input"] for each in predictions]
    assert "image" not in first
    assert {"image", "mask"} <= set(inpainted)
    assert len({(each["prompt"], each.get("replicate_weights"), each["seed"]) for each in grid}) == 6
