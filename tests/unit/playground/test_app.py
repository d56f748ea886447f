"""The page in a real browser: its form, notices, errors, requests, and its use by keyboard and screen reader."""

from pathlib import Path

import pytest

from serve.api.playground import FIRST_INPUTS
from serve.inputs import Inputs
from serve.settings import Settings
from tests.app_factory import make_app
from tests.browser import Browser
from tests.drawing_pool import DrawingPool

OUTPUT, GENERATE, STEPS = "[data-test=output]", "[data-test=generate]", "[data-test=number-num_inference_steps]"
PROMPT, MEGAPIXELS = "#input-prompt", "document.querySelector('#input-megapixels input:checked').value"
FOCUSED = """
    const element = document.activeElement;
    // Radio buttons show their focus on the text beside them.
    const outlined = element.type == 'radio' ? element.nextElementSibling : element;
    const {test, tab} = element.dataset;
    const place = [...document.querySelectorAll('*')].indexOf(element);
    return [element.id || test || tab || element.value, place, getComputedStyle(outlined).outlineStyle];
"""
"""The name of the element with the focus, its place in the document, and the style of its outline."""


def limited(max_in_flight: int) -> Settings:
    settings = Settings()
    pools = {name: pool.model_copy(update={"max_in_flight": max_in_flight}) for name, pool in settings.pools.items()}
    return settings.model_copy(update={"pools": pools})


async def field_names(browser: Browser) -> set[str]:
    script = "return [...document.querySelectorAll('[data-field]')].map((each) => each.dataset.field)"
    return set(await browser.script(script))


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
        await app.create({"prompt": "an older prediction"})
        await browser.open(url + "/playground")
        await browser.click(GENERATE)
        await browser.wait_for_text("[data-test=retry]", "Try again in")
        assert not await browser.script("return document.querySelector('[data-test=retry]').disabled === false")
        pool.may_start.set()
        await browser.wait_for("document.querySelector('[data-test=retry]').disabled === false")
        await browser.click("[data-test=retry]")
        await browser.find(OUTPUT)
        assert await browser.count("[data-test=notice]") == 0


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


@pytest.mark.parametrize(
    ("clicked", "shown"),
    [
        (GENERATE, OUTPUT),
        ("[aria-label^=Edit]", ".mask-overlay"),
        ("[data-tab=code]", "[data-test=code]"),
        ("[data-tab=grid]", "[data-test=grid-run]"),
    ],
)
async def test_controls_have_names_and_headings_are_in_order(browser: Browser, clicked: str, shown: str) -> None:
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(url + "/playground")
        await browser.click(GENERATE)
        await browser.find(OUTPUT)
        await browser.click(clicked)
        await browser.find(shown)
        headings = "[...document.querySelectorAll('h1, h2')].filter((each) => each.checkVisibility())"
        assert await browser.script(f"return {headings}.map((each) => each.localName)") == ["h1", "h2"]
        await browser.script("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        tree = await browser.cdp("Accessibility.getFullAXTree")
    interactive = {"button", "textbox", "slider", "combobox", "switch", "radio", "spinbutton", "tab", "link", "image"}
    interactive |= {"DisclosureTriangle", "application", "radiogroup", "tablist", "toolbar", "dialog", "progressbar"}
    nodes = [node for node in tree["nodes"] if not node["ignored"] and node["role"]["value"] in interactive]
    assert len(nodes) > 50
    assert not [node for node in nodes if not node.get("name", {}).get("value")]
