"""The comparison of prompts, LoRAs and seeds in a real browser."""

from pathlib import Path

from tests.app_factory import make_app
from tests.browser import KEYS, Browser
from tests.drawing_pool import DrawingPool, draw

IMAGE, PREVIEW, RUN = "[data-test=grid-image]", "[data-test=preview]", "[data-test=grid-run]"
PROMPTS, LORAS, SEEDS = "[data-test=grid-prompts]", "[data-test=grid-loras]", "[data-test=grid-seeds]"


async def value(browser: Browser, selector: str) -> str:
    text: str = await browser.script("return document.querySelector(arguments[0]).value", selector)
    return text


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
        await browser.wait_for_text("[data-test=progress]", "of 28")
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


async def test_previews_are_shown_in_the_cells_until_the_images_are_there(browser: Browser) -> None:
    pool = DrawingPool()
    pool.may_finish.clear()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.click("#input-aspect_ratio input[value='16:9']")
        await browser.click("[data-tab=grid]")
        await browser.type(LORAS, "none")
        await browser.click(RUN)
        shown = f"[...document.querySelectorAll('td {PREVIEW}')].filter((each) => each.naturalWidth == 32)"
        await browser.wait_for(f"{shown}.length == 2")
        first, second = await browser.script(f"return {shown}.map((each) => each.src)")
        assert first != second
        # The cell has the shape of its image.
        box = "const b = document.querySelector('td > div').getBoundingClientRect(); return b.width / b.height"
        width, height = pool.plans[0].size or (1, 1)
        assert abs(await browser.script(box) - width / height) < 0.02
        pool.may_finish.set()
        await browser.wait_for(f"document.querySelectorAll('{IMAGE}').length == 2")
        assert await browser.count(PREVIEW) == 0
        assert await browser.problems() == []
    assert all(plan.previews > 0 for plan in pool.plans)


async def test_reason_of_a_failed_prediction_is_shown_in_its_cell(browser: Browser) -> None:
    async with make_app(DrawingPool(flagged=(0,))).listening() as url:
        await browser.open(url + "/playground")
        await browser.click("[data-tab=grid]")
        await browser.click(RUN)
        await browser.wait_for("[...document.querySelectorAll('td')].every((e) => e.textContent.includes('NSFW'))")


async def test_rejected_input_is_reported_in_its_cell_and_counted(browser: Browser) -> None:
    pool = DrawingPool()
    pool.may_finish.clear()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.click("[data-tab=grid]")
        await browser.type(LORAS, "none\nno lora at all")
        await browser.type(SEEDS, "1")
        await browser.click(RUN)
        await browser.wait_for_text("td .field-error", "huggingface")
        await browser.wait_for_text("[data-test=grid-progress]", "1 of 2")
        pool.may_finish.set()
        await browser.find(IMAGE)
        await browser.find(RUN)


async def test_comparison_starts_from_the_form(browser: Browser) -> None:
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(url + "/playground")
        await browser.type("#input-prompt", "a green\ntree")
        await browser.type("#input-seed", "40")
        await browser.click("[data-tab=grid]")
        assert [await value(browser, each) for each in (PROMPTS, SEEDS)] == ["a green tree", "40, 41"]
        assert (await value(browser, LORAS)).splitlines() == ["none", "embedded:handwriting", "embedded:sketch"]
        await browser.type(SEEDS, "3")
        await browser.click("[data-tab=create]")
        await browser.type("#input-prompt", "a blue key")
        await browser.type("#input-seed", "50")
        await browser.click("[data-tab=grid]")
        # Texts that were changed here stay.
        assert [await value(browser, each) for each in (PROMPTS, SEEDS)] == ["a blue key", "3"]


async def test_form_shows_only_the_inputs_that_are_not_compared(browser: Browser) -> None:
    visible = "return [...document.querySelectorAll('[data-field], button')].filter((each) => each.checkVisibility())"
    names = f"{visible}.map((each) => each.dataset.field ?? each.dataset.test)"
    compared = {"prompt", "replicate_weights", "num_outputs", "seed"}
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(url + "/playground")
        await browser.find("[data-test=generate]")
        await browser.script("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        before = set(await browser.script(names))
        await browser.click("[data-tab=grid]")
        after = set(await browser.script(names))
    assert before - after >= compared | {"generate"}
    assert after - before == {"grid-run"}
    assert {"megapixels", "num_inference_steps", "lora_scale"} <= after


async def test_input_image_and_mask_are_compared_too(browser: Browser, tmp_path: Path) -> None:
    image, pool = tmp_path / "image.webp", DrawingPool()
    image.write_bytes(draw((512, 512), seed=3))
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.find("[data-test=generate]")
        await browser.choose_file("[data-test=image-file]", image)
        await browser.drag(".mask-overlay", (0.3, 0.3), (0.6, 0.3))
        await browser.click("[data-tab=grid]")
        await browser.click(RUN)
        await browser.wait_for(f"document.querySelectorAll('{IMAGE}').length == 6")
    edits = [pool.edit(call) for call in range(6)]
    assert {each.shape for each, _ in edits} == {(512, 512, 3)}
    assert all(mask[154, 200] and not mask[400].any() for _, mask in edits)


async def test_comparison_is_started_by_keyboard_and_once(browser: Browser) -> None:
    pool = DrawingPool()
    pool.may_finish.clear()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.click("[data-tab=grid]")
        await browser.type(LORAS, "none")
        await browser.type(PROMPTS, KEYS["Control"] + KEYS["Enter"], clear=False)
        await browser.wait_for_text("[data-test=progress]", "of 28")
        await browser.type(SEEDS, KEYS["Enter"], clear=False)
        pool.may_finish.set()
        await browser.wait_for(f"document.querySelectorAll('{IMAGE}').length == 2")
    assert sorted(plan.seeds for plan in pool.plans) == [(1,), (2,)]


async def test_comparison_survives_a_change_of_the_model(browser: Browser) -> None:
    pool = DrawingPool()
    pool.may_finish.clear()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.click("[data-tab=grid]")
        await browser.click(RUN)
        await browser.wait_for_text("[data-test=progress]", "of 28")
        await browser.select("#served-model", "black-forest-labs/flux-schnell")
        await browser.click(".grid-actions .button")
        await browser.find(RUN)
    assert pool.stop_count == len(pool.plans) == 3
