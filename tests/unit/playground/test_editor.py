"""Input images in a real browser: how they get there, their crop, the mask, and the comparison with the result."""

import base64
from pathlib import Path

import pytest
from PIL import Image

from tests.app_factory import make_app
from tests.browser import KEYS, Browser
from tests.drawing_pool import DrawingPool, draw

GENERATE, OUTPUT, OVERLAY = "[data-test=generate]", "[data-test=output]", ".mask-overlay"
FILE, SENT_AS = "[data-test=image-file]", "[data-test=sent-as]"
WITH_FILE = """
    const bytes = Uint8Array.from(atob(arguments[0]), (char) => char.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "x.webp", {type: "image/webp"}));
"""
PASTE = "document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true}))"
DROP = "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}))"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.webp"
    path.write_bytes(draw((1000, 640), seed=3))
    return path


def base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


async def open_editor(browser: Browser, url: str, image: Path) -> None:
    await browser.open(url + "/playground")
    await browser.find(GENERATE)
    await browser.choose_file(FILE, image)
    await browser.find(OVERLAY)


async def generate(browser: Browser) -> None:
    await browser.click(GENERATE)
    await browser.find(OUTPUT)


async def test_painted_mask_is_inpainted(browser: Browser, image: Path) -> None:
    pool = DrawingPool()
    async with make_app(pool).listening() as url:
        await open_editor(browser, url, image)
        await browser.drag(OVERLAY, (0.25, 0.5), (0.75, 0.5))
        await generate(browser)
        assert await browser.problems() == []
    sent, mask = pool.edit()
    # 1000 is rounded to a multiple of 16.
    assert sent.shape == (640, 1008, 3)
    assert mask.shape == (640, 1008)
    assert mask[320, 300:700].all()
    assert not mask[100].any()
    assert not mask[320, :150].any()


async def test_mask_is_erased_undone_inverted_and_filled(browser: Browser, image: Path) -> None:
    pool = DrawingPool()
    async with make_app(pool).listening() as url:
        await open_editor(browser, url, image)
        await browser.click("[aria-label='Fill the mask']")
        await browser.click("[aria-label='Erase']")
        await browser.drag(OVERLAY, (0.5, 0.5), (0.5, 0.5))
        await browser.click("[aria-label='Invert the mask']")
        await browser.click("[aria-label='Fill the mask']")
        await browser.click("[aria-label='Undo']")
        await generate(browser)
        _, mask = pool.edit()
        assert mask[320, 504]
        # A circle of a tenth of the width.
        assert 0.009 < mask.mean() < 0.016
        await browser.click("[data-tab=image]")
        await browser.click("[aria-label='Clear the mask']")
        await generate(browser)
        await browser.wait_for("document.querySelectorAll('[data-test=entry]').length == 2")
        assert pool.images[-1][1] is None


async def test_mask_is_painted_by_keyboard(browser: Browser, image: Path) -> None:
    pool = DrawingPool()
    async with make_app(pool).listening() as url:
        await open_editor(browser, url, image)
        await browser.type(OVERLAY, " " + KEYS["ArrowRight"] * 10 + " ", clear=False)
        await generate(browser)
    _, mask = pool.edit()
    assert mask[320, 504]
    assert mask[320, round(504 + 10 * 0.02 * 1008)]
    assert not mask[320, 300]


async def test_crop_has_the_size_that_is_announced(browser: Browser, image: Path) -> None:
    pool = DrawingPool()
    async with make_app(pool).listening() as url:
        await open_editor(browser, url, image)
        await browser.wait_for_text(SENT_AS, "640 pixels")
        await browser.select(".crop select", "1:1")
        await browser.wait_for_text(SENT_AS, "512 pixels")
        await browser.click("[aria-label='Move the crop by dragging']")
        # The left edge of the image is dragged into view, so that the ellipse starts at its place in the image.
        await browser.drag(OVERLAY, (0.2, 0.5), (0.9, 0.5))
        await generate(browser)
    sent = pool.images[-1][0]
    assert sent is not None
    assert sent.shape == (512, 512, 3)
    background, edge = sent[5, 5].astype(int), sent[round(0.45 * 512), round((250 - 30) * 0.8)].astype(int)
    assert abs(background - edge).max() < 12
    assert abs(background - sent[round(0.45 * 512), round((250 + 60) * 0.8)].astype(int)).max() > 50


@pytest.mark.parametrize("event", [PASTE, DROP])
async def test_image_is_pasted_or_dropped(browser: Browser, image: Path, event: str) -> None:
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(url + "/playground")
        await browser.find(GENERATE)
        await browser.script(WITH_FILE + event, base64_of(image))
        await browser.wait_for_text(SENT_AS, "640 pixels")


async def test_file_that_is_no_image_is_reported(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("no image")
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(url + "/playground")
        await browser.find(GENERATE)
        await browser.choose_file(FILE, path)
        await browser.wait_for_text("[data-test=notice]", "notes.png")


async def test_mask_file_replaces_the_painted_mask(browser: Browser, image: Path, tmp_path: Path) -> None:
    half = Image.new("L", (100, 64), 0)
    half.paste(255, (0, 0, 50, 64))
    path = tmp_path / "mask.png"
    half.save(path)
    pool = DrawingPool()
    async with make_app(pool).listening() as url:
        await open_editor(browser, url, image)
        await browser.choose_file("[data-test=mask-file]", path)
        await browser.wait_for_text(SENT_AS, "50 %")
        await generate(browser)
    _, mask = pool.edit()
    assert mask[:, :490].all()
    assert not mask[:, 520:].any()


async def test_result_is_compared_with_the_input_image(browser: Browser, image: Path) -> None:
    async with make_app(DrawingPool(), token="secret").listening() as url:
        await browser.open(url + "/playground")
        await browser.type("#token", "secret")
        await browser.click(".token-dialog .primary")
        await browser.find(GENERATE)
        await browser.choose_file(FILE, image)
        await generate(browser)
        await browser.click("[aria-label='Compare with the input image']")
        await browser.wait_for("document.querySelector('.compare-before').naturalWidth == 1008")
        slider = "document.querySelector('[data-test=compare]')"
        await browser.script(f"{slider}.value = 25; {slider}.dispatchEvent(new Event('input', {{bubbles: true}}))")
        await browser.wait_for("document.querySelector('.compare-before').style.clipPath.includes('75%')")
        assert not [problem for problem in await browser.problems() if "401" not in problem]


async def test_result_becomes_the_input_image(browser: Browser) -> None:
    pool = DrawingPool()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await generate(browser)
        await browser.click("[aria-label^=Edit]")
        await browser.wait_for_text(SENT_AS, "512 pixels")
        await generate(browser)
    sent = pool.images[-1][0]
    assert sent is not None
    assert sent.shape == (512, 512, 3)


async def test_result_without_an_input_image_is_not_compared(browser: Browser, image: Path) -> None:
    compare = "[aria-label='Compare with the input image']"
    async with make_app(DrawingPool()).listening() as url:
        await open_editor(browser, url, image)
        await generate(browser)
        await browser.find(compare)
        await browser.click("[data-tab=image]")
        await browser.click(".crop > button")
        await generate(browser)
        await browser.wait_for("document.querySelectorAll('[data-test=entry] img').length == 2")
        assert await browser.count(compare) == 0
