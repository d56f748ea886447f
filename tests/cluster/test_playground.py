"""The first session of a newcomer in the playground of a real service, in a real browser."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serve.launch.subprocess_service import LocalService, local_service
from tests.browser import Browser, missing_programs, open_browser, open_session

GENERATE, DONE, OUTPUT = "[data-test=generate]", "[data-test=status]", "[data-test=output]"
TIMEOUT_S = 180


@pytest.fixture(scope="module")
def service(environment: dict[str, str]) -> Iterator[LocalService]:
    with local_service(environment=environment) as running_service:
        yield running_service


async def save_screenshot(browser: Browser, path: Path) -> None:
    content = await browser.screenshot()
    await asyncio.to_thread(path.write_bytes, content)


async def generate(browser: Browser, count: int) -> None:
    """Generates, and waits until the gallery has this many entries with images."""
    await browser.click(GENERATE)
    await browser.wait_for(f"document.querySelectorAll('[data-test=entry] img').length == {count}")
    await browser.wait_for_text(DONE, "Done")


@pytest.mark.slow_cluster
@pytest.mark.skipif(bool(missing_programs()), reason=f"{' and '.join(missing_programs())} not found")
async def test_newcomer_generates_inpaints_and_compares_loras(service: LocalService, tmp_path: Path) -> None:
    start_s = time.perf_counter()
    with open_session() as session:
        async with open_browser(*session, timeout_s=TIMEOUT_S) as browser:
            await browser.open(service.url)
            await browser.find(GENERATE)
            await save_screenshot(browser, tmp_path / "1-form.png")
            await generate(browser, 1)
            await save_screenshot(browser, tmp_path / "2-image.png")

            await browser.click("[aria-label^=Edit]")
            await browser.drag(".mask-overlay", (0.25, 0.25), (0.75, 0.25), (0.25, 0.35), (0.75, 0.35))
            await browser.type("#input-prompt", "a yellow sun")
            await save_screenshot(browser, tmp_path / "3-mask.png")
            await generate(browser, 2)
            await save_screenshot(browser, tmp_path / "4-inpainted.png")

            await browser.click(".run-bar .quiet")
            await browser.click("[data-tab=grid]")
            await browser.click("[data-test=grid-run]")
            await browser.wait_for("document.querySelectorAll('[data-test=grid-image]').length == 6")
            await save_screenshot(browser, tmp_path / "5-comparison.png")
            assert await browser.problems() == []
    print(f"the session took {time.perf_counter() - start_s:.0f} s; screenshots are in {tmp_path}")

    async with httpx.AsyncClient(base_url=service.url) as client:
        predictions = (await client.get("/v1/predictions")).json()["results"]
    assert [each["status"] for each in predictions] == ["succeeded"] * 8
    *grid, inpainted, first = [each["input"] for each in predictions]
    assert "image" not in first
    assert {"image", "mask"} <= set(inpainted)
    assert len({(each["prompt"], each.get("replicate_weights"), each["seed"]) for each in grid}) == 6
