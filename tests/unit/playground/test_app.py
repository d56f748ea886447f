"""The page in a real browser: its form, progress, errors, the token, and narrow windows."""

from pathlib import Path
from typing import Any

import pytest

from serve.api.playground import FIRST_INPUTS
from serve.inputs import Inputs
from serve.media.object_store import ObjectStore
from serve.settings import Settings
from tests.app_factory import AppUnderTest, make_app
from tests.browser import KEYS, PHONE, Browser
from tests.drawing_pool import DrawingPool, draw

OUTPUT, GENERATE, STEPS = "[data-test=output]", "[data-test=generate]", "[data-test=number-num_inference_steps]"
PROMPT, PREVIEW = "#input-prompt", "[data-test=preview]"
MEGAPIXELS = "document.querySelector('#input-megapixels input:checked').value"
FOCUSED = """
    const element = document.activeElement;
    // Radio buttons show their focus on the text beside them.
    const outlined = element.type == 'radio' ? element.nextElementSibling : element;
    const {test, tab} = element.dataset;
    const place = [...document.querySelectorAll('*')].indexOf(element);
    return [element.id || test || tab || element.value, place, getComputedStyle(outlined).outlineStyle];
"""
"""The name of the element with the focus, its place in the document, and the style of its outline."""
WIDTHS = "return [document.documentElement.scrollWidth, window.innerWidth]"


def limited(max_in_flight: int) -> Settings:
    settings = Settings()
    pools = {name: pool.model_copy(update={"max_in_flight": max_in_flight}) for name, pool in settings.pools.items()}
    return settings.model_copy(update={"pools": pools})


async def fill_pool(app: AppUnderTest) -> str:
    return (await app.create({"prompt": "an older prediction"})).id


async def field_names(browser: Browser) -> set[str]:
    script = "return [...document.querySelectorAll('[data-field]')].map((each) => each.dataset.field)"
    return set(await browser.script(script))


async def top_of(browser: Browser, selector: str) -> float:
    script = "return document.querySelector(arguments[0]).getBoundingClientRect().top"
    return float(await browser.script(script, selector))


async def test_form_has_every_input_of_the_schema_once(browser: Browser) -> None:
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(f"{url}/")
        await browser.find(GENERATE)
        shown = await field_names(browser)
        await browser.click("input[value=custom]")
        await browser.find("[data-field=width]")
        # The mask and the strength appear with an image.
        assert shown == set(Inputs.model_fields) - {"width", "height", "mask", "prompt_strength"}
        assert await field_names(browser) == set(Inputs.model_fields) - {"mask", "prompt_strength"}
        assert await browser.script(f"return document.querySelector('{STEPS}').max") == "50"
        assert await browser.problems() == []


async def test_bounds_and_defaults_are_those_of_the_chosen_model(browser: Browser) -> None:
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(url + "/playground")
        await browser.type(STEPS, "20")
        await browser.select("#served-model", "black-forest-labs/flux-schnell")
        await browser.wait_for(f"document.querySelector('{STEPS}').max == 4")
        # 20 steps do not fit.
        assert await browser.script(f"return document.querySelector('{STEPS}').value") == "4"
        assert await browser.script(
            "return [...document.querySelectorAll('#input-model input')].map((e) => e.value)"
        ) == ["schnell"]


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
        older = await fill_pool(app)
        await browser.open(url + "/playground")
        await browser.click(GENERATE)
        await browser.wait_for_text(".status", "1 ahead")
        await app.service.cancel(older)
        await browser.wait_for_text(".status", "replica")
        assert "ahead" not in await browser.text(".status")
        pool.may_start.set()
        await browser.find(OUTPUT)
        assert "replica" not in await browser.text(".status")


async def test_notice_is_shown_while_the_service_starts(browser: Browser) -> None:
    app = make_app(DrawingPool(), opened=False)
    async with app.listening() as url:
        await browser.open(url + "/playground")
        await browser.wait_for_text(".notice", "starting")
        app.service.open()
        await browser.wait_for("!document.querySelector('.notice')")
        await browser.click(GENERATE)
        await browser.find(OUTPUT)


async def test_lora_file_is_uploaded_and_used(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "sketch.safetensors"
    file.write_bytes(b"weights")
    pool = DrawingPool()
    app = make_app(pool)
    async with app.listening() as url:
        await browser.open(url + "/playground")
        await browser.find(GENERATE)
        await browser.choose_file("[data-test=file-replicate_weights]", file)
        value = "document.querySelector('#input-replicate_weights').value"
        assert "/v1/files/" in await browser.wait_for(f"{value}.includes('/v1/files/') && {value}")
        await browser.click(GENERATE)
        await browser.find(OUTPUT)
        assert await browser.problems() == []
    (plan,) = pool.plans
    assert len(plan.loras) == 1


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


@pytest.mark.parametrize(
    ("selector", "text", "field", "part"),
    [
        (STEPS, "99", "num_inference_steps", "50"),
        ("#input-replicate_weights", "no lora at all", "replicate_weights", "huggingface"),
        ("[aria-label='Address of an image']", "not an address", "image", "URL"),
    ],
)
async def test_wrong_input_is_reported_at_its_field(
    browser: Browser, selector: str, text: str, field: str, part: str
) -> None:
    pool = DrawingPool()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.find(GENERATE)
        await browser.script("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        await browser.type(selector, text)
        await browser.script("document.querySelectorAll('details').forEach((each) => (each.open = false))")
        await browser.click(GENERATE)
        # The group of the field is opened, and its control has the focus.
        await browser.wait_for_text(f"[data-field={field}] .field-error", part)
        await browser.wait_for(f"document.activeElement.closest('[data-field={field}]')?.checkVisibility()")
        assert await browser.count(".field-error") == 1
        assert await browser.count("[data-test=notice]") == 0
    assert pool.plans == []


async def test_full_pool_shows_when_to_try_again(browser: Browser) -> None:
    pool = DrawingPool()
    pool.may_start.clear()
    app = make_app(pool, limited(1))
    async with app.listening() as url:
        await fill_pool(app)
        await browser.open(url + "/playground")
        await browser.click(GENERATE)
        await browser.wait_for_text("[data-test=retry]", "Try again in")
        assert not await browser.script("return document.querySelector('[data-test=retry]').disabled === false")
        pool.may_start.set()
        await browser.wait_for("document.querySelector('[data-test=retry]').disabled === false")
        await browser.click("[data-test=retry]")
        await browser.find(OUTPUT)
        assert await browser.count("[data-test=notice]") == 0


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


async def test_reset_restores_the_opening_example(browser: Browser) -> None:
    state = f"[document.querySelector('{PROMPT}').value, document.querySelector('{STEPS}').value, {MEGAPIXELS}]"
    pool = DrawingPool()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.find(GENERATE)
        opening = await browser.script(f"return {state}")
        assert opening == [FIRST_INPUTS["prompt"], "28", FIRST_INPUTS["megapixels"]]
        await browser.type(PROMPT, "a green tree")
        await browser.type(STEPS, "99")
        await browser.click("#input-megapixels input[value='1']")
        await browser.click(GENERATE)
        await browser.find(".field-error")
        await browser.click("[data-test=reset]")
        assert await browser.script(f"return {state}") == opening
        assert await browser.count(".field-error") == 0
        await browser.click(GENERATE)
        await browser.find(OUTPUT)
    (plan,) = pool.plans
    assert (plan.prompt, plan.size) == (FIRST_INPUTS["prompt"], (512, 512))


async def test_reset_of_other_models_restores_their_defaults(browser: Browser) -> None:
    settings = Settings()
    models = {name: model.model_copy(update={"source": "org/flux"}) for name, model in settings.models.items()}
    async with make_app(DrawingPool(), settings.model_copy(update={"models": models})).listening() as url:
        await browser.open(url + "/playground")
        await browser.type(PROMPT, "a green tree")
        await browser.click("#input-megapixels input[value='0.25']")
        await browser.click("[data-test=reset]")
        state = f"[document.querySelector('{PROMPT}').value, {MEGAPIXELS}]"
        assert await browser.script(f"return {state}") == ["", "1"]


async def test_page_requests_only_its_own_service(browser: Browser) -> None:
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(url + "/playground")
        await browser.find(GENERATE)
        entries = await browser.script("return performance.getEntriesByType('resource').map((e) => e.toJSON())")
        page = await browser.script("return performance.getEntriesByType('navigation')[0].toJSON()")
        files = [each for each in entries if "/playground/" in each["name"]]
        assert len(files) > 20
        assert all(each["name"].startswith(f"{url}/") for each in entries)
        assert sum(each["decodedBodySize"] for each in [page, *files]) < 150_000


async def test_controls_are_reached_and_used_by_keyboard(browser: Browser) -> None:
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(url + "/playground")
        await browser.find(GENERATE)
        places: list[int] = []
        names: list[str] = []
        while "generate" not in names:
            await browser.press("Tab")
            name, place, outline = await browser.script(FOCUSED)
            assert outline != "none", name
            names.append(name)
            places.append(place)
        assert places == sorted(set(places))
        assert {"create", "served-model", "input-prompt", "number-num_inference_steps", "input-seed"} <= set(names)
        await browser.press("Enter")
        await browser.find(OUTPUT)
        while (await browser.script(FOCUSED))[0] != "result":
            await browser.press("Tab")
        await browser.press("ArrowRight")
        assert (await browser.script(FOCUSED))[0] == "code"
        await browser.find("[data-test=code]")


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
        # The result is in view.
        assert 0 < await top_of(browser, OUTPUT) < PHONE[1] / 2


async def test_answers_to_a_tap_are_in_view_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    image, pool = tmp_path / "image.webp", DrawingPool()
    image.write_bytes(draw((512, 512), seed=3))
    pool.may_start.clear()
    app = make_app(pool, limited(1))
    async with app.listening() as url:
        await fill_pool(app)
        await browser.resize(PHONE)
        await browser.open(url + "/playground")
        await browser.find(GENERATE)
        top = "document.querySelector(arguments[0]).getBoundingClientRect().top"
        in_view = f"document.querySelector(arguments[0]) && {top} >= 0 && {top} < {PHONE[1] / 2}"
        await browser.click(GENERATE)
        await browser.wait_for(in_view, "[data-test=retry]")
        await browser.choose_file("[data-test=image-file]", image)
        await browser.wait_for(in_view, ".mask-overlay")
        await browser.click("[data-tab=grid]")
        await browser.wait_for(in_view, "[data-test=grid-prompts]")
        await browser.click("[data-tab=create]")
        await browser.wait_for(in_view, PROMPT)
        await browser.script("document.querySelector('#group-image').open = true")
        await browser.click(".thumbnail-actions button")
        await browser.wait_for(in_view, ".mask-overlay")
        assert await browser.script(WIDTHS) == [PHONE[0], PHONE[0]]


@pytest.mark.parametrize(
    ("clicked", "shown"),
    [
        (GENERATE, OUTPUT),
        ("[aria-label^=Edit]", ".mask-overlay"),
        ("[data-tab=code]", "[data-test=code]"),
        ("[data-tab=grid]", "[data-test=grid-run]"),
    ],
)
async def test_controls_have_names(browser: Browser, clicked: str, shown: str) -> None:
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(url + "/playground")
        await browser.click(GENERATE)
        await browser.find(OUTPUT)
        await browser.click(clicked)
        await browser.find(shown)
        await browser.script("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        tree = await browser.cdp("Accessibility.getFullAXTree")
    interactive = {"button", "textbox", "slider", "combobox", "switch", "radio", "spinbutton", "tab", "link", "image"}
    interactive |= {"DisclosureTriangle", "application", "radiogroup", "tablist", "toolbar", "dialog", "progressbar"}
    nodes = [node for node in tree["nodes"] if not node["ignored"] and node["role"]["value"] in interactive]
    assert len(nodes) > 50
    assert not [node for node in nodes if not node.get("name", {}).get("value")]
