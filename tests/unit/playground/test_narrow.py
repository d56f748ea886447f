"""The page in the narrow window of a phone, in a real browser."""

from pathlib import Path

from tests.app_factory import make_app
from tests.browser import PHONE, Browser
from tests.drawing_pool import DrawingPool, draw

OUTPUT, GENERATE, PROMPT = "[data-test=output]", "[data-test=generate]", "#input-prompt"
WIDTHS = "return [document.documentElement.scrollWidth, window.innerWidth]"
TOP = "document.querySelector(arguments[0])?.getBoundingClientRect().top"
IN_VIEW = f"{TOP} > 0 && {TOP} < {PHONE[1] / 2}"
"""Whether an element is in the upper half of the window."""


async def test_page_fits_a_phone(browser: Browser) -> None:
    async with make_app(DrawingPool()).listening() as url:
        await browser.resize(PHONE)
        await browser.open(url + "/playground")
        await browser.find(GENERATE)
        width, inner = await browser.script(WIDTHS)
        assert width == inner == PHONE[0]
        await browser.click(GENERATE)
        await browser.find(OUTPUT)
        assert await browser.script(WIDTHS) == [PHONE[0], PHONE[0]]
        await browser.wait_for(IN_VIEW, OUTPUT)
        await browser.click("[data-test=recall]")
        await browser.wait_for(IN_VIEW, PROMPT)


async def test_answers_to_a_tap_are_in_view_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    image, notes = tmp_path / "image.webp", tmp_path / "notes.png"
    image.write_bytes(draw((512, 512), seed=3))
    notes.write_text("no image")
    async with make_app(DrawingPool(), opened=False).listening() as url:
        await browser.resize(PHONE)
        await browser.open(url + "/playground")
        await browser.find(GENERATE)
        await browser.click(GENERATE)
        await browser.wait_for(IN_VIEW, "[data-test=retry]")
        await browser.script("scrollTo(0, 0)")
        await browser.choose_file("[data-test=image-file]", notes)
        await browser.wait_for(IN_VIEW, "[data-test=notice]")
        await browser.choose_file("[data-test=image-file]", image)
        await browser.wait_for(IN_VIEW, ".mask-overlay")
        await browser.click("[data-tab=grid]")
        await browser.wait_for(IN_VIEW, "[data-test=grid-prompts]")
        await browser.click("[data-tab=create]")
        await browser.wait_for(IN_VIEW, PROMPT)
        await browser.script("document.querySelector('#group-image').open = true")
        await browser.click(".thumbnail-actions button")
        await browser.wait_for(IN_VIEW, ".mask-overlay")
        assert await browser.script(WIDTHS) == [PHONE[0], PHONE[0]]
