"""The request for a token in a real browser."""

from typing import Any

from tests.app_factory import make_app
from tests.browser import Browser
from tests.drawing_pool import DrawingPool

GENERATE, OUTPUT = "[data-test=generate]", "[data-test=output]"


async def test_token_is_asked_for_once_and_kept_for_the_tab(browser: Browser) -> None:
    async with make_app(DrawingPool(), token="secret").listening() as url:
        await browser.open(url + "/playground")
        await browser.type("#token", "wrong")
        await browser.click(".token-dialog .primary")
        await browser.find("#token-error")
        await browser.type("#token", "secret")
        await browser.click(".token-dialog .primary")
        await browser.click(GENERATE)
        await browser.find(OUTPUT)
        await browser.open(url + "/playground")
        await browser.find("[data-test=entry] img")
        storage: dict[str, Any] = await browser.script("return {...localStorage, url: location.href}")
        assert "secret" not in str(storage)
        assert "secret" in await browser.script("return Object.values({...sessionStorage})")
