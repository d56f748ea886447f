"""The comparison of prompts, LoRAs and seeds in a real browser."""

from tests.app_factory import make_app
from tests.browser import Browser
from tests.drawing_pool import DrawingPool

IMAGE = "[data-test=grid-image]"


async def test_each_combination_is_generated_once(browser: Browser) -> None:
    pool = DrawingPool()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.type("[data-test=number-num_inference_steps]", "6")
        await browser.click("[data-tab=grid]")
        await browser.type("[data-test=grid-prompts]", "a red cup\na blue cup")
        await browser.type("[data-test=grid-loras]", "none\nembedded:sketch @ 0.5")
        await browser.type("[data-test=grid-seeds]", "3, 4")
        await browser.click("[data-test=grid-run]")
        await browser.wait_for(f"document.querySelectorAll('{IMAGE}').length == 8")
        headers = await browser.script(
            "return [...document.querySelectorAll('tbody th')].map((each) => each.textContent)"
        )
        assert headers == [
            "a red cup",
            "No LoRA",
            "embedded:sketch at 0.5",
            "a blue cup",
            "No LoRA",
            "embedded:sketch at 0.5",
        ]
        await browser.click(".table-frame .image-button")
        await browser.wait_for_text(".prompt-text", "a red cup")
        assert await browser.problems() == []
    runs = {(plan.prompt, plan.loras[0].scale if plan.loras else None, plan.seeds) for plan in pool.plans}
    assert len(pool.plans) == len(runs) == 8
    assert {plan.steps for plan in pool.plans} == {6}
    assert ("a blue cup", 0.5, (4,)) in runs


async def test_cancel_stops_all_predictions_of_the_grid(browser: Browser) -> None:
    pool = DrawingPool()
    pool.may_finish.clear()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.click("[data-tab=grid]")
        await browser.type("[data-test=grid-seeds]", "1 2 3 4 5")
        await browser.click("[data-test=grid-run]")
        await browser.wait_for_text(".cell-empty", "/ 28")
        await browser.click(".grid-actions .button")
        await browser.find("[data-test=grid-run]")
    assert len(pool.plans) <= 3
    assert pool.stop_count == len(pool.plans)


async def test_too_many_images_are_not_started(browser: Browser) -> None:
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(url + "/playground")
        await browser.click("[data-tab=grid]")
        await browser.type("[data-test=grid-seeds]", " ".join(map(str, range(30))))
        await browser.wait_for_text(".grid-actions", "64")
        assert await browser.script("return document.querySelector('[data-test=grid-run]').disabled")
