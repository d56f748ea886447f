"""The result of a prediction in a real browser: progress, previews, images, and predictions without images."""

import pytest

from serve.media.object_store import ObjectStore
from serve.settings import Settings
from tests.app_factory import make_app
from tests.browser import KEYS, Browser
from tests.drawing_pool import DrawingPool

OUTPUT, GENERATE, STEPS = "[data-test=output]", "[data-test=generate]", "[data-test=number-num_inference_steps]"
PROMPT, PREVIEW = "#input-prompt", "[data-test=preview]"


async def test_images_appear_after_live_progress(browser: Browser) -> None:
    pool = DrawingPool()
    pool.may_finish.clear()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.type(PROMPT, "a blue house", clear=True)
        await browser.type(STEPS, "8")
        await browser.type("[data-test=number-num_outputs]", "2")
        await browser.type(PROMPT, KEYS["Control"] + KEYS["Enter"], clear=False)
        await browser.wait_for_text("[data-test=progress]", "Step 4 of 8")
        assert await browser.text("[data-test=status]") == "Generating"
        pool.may_finish.set()
        await browser.wait_for(f"document.querySelectorAll('{OUTPUT}').length == 2")
        await browser.wait_for_text("[data-test=status]", "Done")
        await browser.wait_for_text(".stages", "denoise")
        assert await browser.problems() == []
    (plan,) = pool.plans
    assert (plan.prompt, plan.steps, len(plan.seeds)) == ("a blue house", 8, 2)
    assert str(plan.seeds[0]) == await browser.text("[data-test=seed]")


async def test_keys_that_are_pressed_twice_send_one_request(browser: Browser) -> None:
    pool = DrawingPool()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.type(STEPS, "2")
        press = "new KeyboardEvent('keydown', {key: 'Enter', ctrlKey: true, bubbles: true})"
        field = f"document.querySelector('{PROMPT}')"
        await browser.script(f"{field}.dispatchEvent({press}); {field}.dispatchEvent({press})")
        await browser.wait_for_text("[data-test=status]", "Done")
        assert await browser.count("[data-test=entry]") == 1
    assert len(pool.plans) == 1


async def test_previews_are_shown_until_the_images_are_there(browser: Browser) -> None:
    pool = DrawingPool()
    pool.may_finish.clear()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.type(STEPS, "12")
        await browser.type("[data-test=number-num_outputs]", "2")
        await browser.click(GENERATE)
        shown = f"[...document.querySelectorAll('{PREVIEW}')].filter((each) => each.naturalWidth == 32)"
        await browser.wait_for(f"{shown}.length == 2")
        first, second = await browser.script(f"return {shown}.map((each) => each.src)")
        assert first.startswith("data:image/webp;base64,")
        assert first != second
        pool.may_finish.set()
        await browser.wait_for(f"document.querySelectorAll('{OUTPUT}').length == 2")
        assert await browser.count(PREVIEW) == 0
        assert await browser.problems() == []
    assert [plan.previews for plan in pool.plans] == [4]


async def test_preview_is_removed_if_the_prediction_is_canceled_or_withheld(browser: Browser) -> None:
    pool = DrawingPool(flagged=(0,))
    pool.may_finish.clear()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.type("[data-test=number-num_outputs]", "2")
        await browser.click(GENERATE)
        await browser.find(PREVIEW)
        pool.may_finish.set()
        await browser.find("[data-test=withheld]")
        await browser.wait_for_text("[data-test=status]", "Done")
        assert await browser.count(PREVIEW) == 0
        pool.may_finish.clear()
        await browser.click(GENERATE)
        await browser.find(PREVIEW)
        await browser.click("[data-test=cancel]")
        await browser.wait_for_text("[data-test=status]", "Canceled")
        assert await browser.count(PREVIEW) == 0


async def test_images_in_a_bucket_are_shown_without_a_request_to_its_host(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def presigned_url(store: ObjectStore, key: str, max_age_s: float) -> str:
        return f"https://bucket.s3.amazonaws.com/prefix/{key}?X-Amz-Signature=1"

    monkeypatch.setattr(ObjectStore, "presigned_url", presigned_url)
    outputs = Settings().outputs.model_copy(update={"public_url": "https://flux.example"})
    async with make_app(DrawingPool(), Settings(outputs=outputs)).listening() as url:
        await browser.open(url + "/playground")
        await browser.click(GENERATE)
        await browser.wait_for(f"document.querySelector('{OUTPUT}')?.naturalWidth == 512")
        assert (await browser.script(f"return document.querySelector('{OUTPUT}').src")).startswith(f"blob:{url}")
        assert await browser.problems() == []


async def test_position_in_the_queue_and_a_wait_for_a_replica_are_shown(browser: Browser) -> None:
    pool = DrawingPool()
    pool.may_start.clear()
    app = make_app(pool)
    async with app.listening() as url:
        older = (await app.create({"prompt": "an older prediction"})).id
        await browser.open(url + "/playground")
        await browser.click(GENERATE)
        await browser.wait_for_text(".status", "1 ahead")
        await app.service.cancel(older)
        await browser.wait_for_text(".status", "replica")
        assert "ahead" not in await browser.text(".status")
        pool.may_start.set()
        await browser.find(OUTPUT)
        assert "replica" not in await browser.text(".status")


async def test_images_are_shown_if_outputs_are_links(browser: Browser) -> None:
    settings = Settings()
    outputs = settings.outputs.model_copy(update={"public_url": "https://flux.example/images"})
    async with make_app(DrawingPool(), settings.model_copy(update={"outputs": outputs})).listening() as url:
        await browser.open(url + "/playground")
        await browser.click(GENERATE)
        await browser.wait_for(f"document.querySelector('{OUTPUT}')?.naturalWidth == 512")
        assert (await browser.script(f"return document.querySelector('{OUTPUT}').src")).startswith(url)
        assert await browser.problems() == []


async def test_cancel_stops_the_prediction(browser: Browser) -> None:
    pool = DrawingPool()
    pool.may_finish.clear()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.click(GENERATE)
        await browser.wait_for_text("[data-test=progress]", "Step 14")
        await browser.click("[data-test=cancel]")
        await browser.wait_for_text("[data-test=status]", "Canceled")
        assert await browser.count("[data-test=cancel]") == 0
    assert pool.stop_count == 1


async def test_withheld_image_is_shown_as_such(browser: Browser) -> None:
    async with make_app(DrawingPool(flagged=(0,))).listening() as url:
        await browser.open(url + "/playground")
        await browser.type("[data-test=number-num_outputs]", "2")
        await browser.click(GENERATE)
        await browser.wait_for_text("[data-test=status]", "Done")
        await browser.wait_for(f"document.querySelectorAll('{OUTPUT}').length == 1")
        assert await browser.count("[data-test=withheld]") == 1
        assert (await browser.script(f"return document.querySelector('{OUTPUT}').alt")).startswith("Image 2")


async def test_reason_of_a_failed_prediction_is_shown(browser: Browser) -> None:
    async with make_app(DrawingPool(flagged=(0,))).listening() as url:
        await browser.open(url + "/playground")
        await browser.click(GENERATE)
        await browser.wait_for_text("[data-test=status]", "Failed")
        await browser.wait_for_text(".failure", "NSFW")
