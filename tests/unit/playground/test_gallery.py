"""Past predictions in a real browser: the gallery, recalled settings, variations and links."""

from pathlib import Path

from serve.api.playground import FIRST_INPUTS
from tests.app_factory import make_app
from tests.browser import Browser
from tests.drawing_pool import DrawingPool, draw

GENERATE, OUTPUT, ENTRY = "[data-test=generate]", "[data-test=output]", "[data-test=entry]"
PROMPT, STEPS, SEED = "#input-prompt", "[data-test=number-num_inference_steps]", "#input-seed"


async def value(browser: Browser, selector: str) -> str:
    text: str = await browser.script("return document.querySelector(arguments[0]).value", selector)
    return text


async def generate(browser: Browser, count: int) -> None:
    """Generates, and waits until the gallery has this many entries with images."""
    await browser.click(GENERATE)
    await browser.wait_for(f"document.querySelectorAll('{ENTRY} img').length == {count}")


async def test_gallery_survives_a_reload(browser: Browser) -> None:
    app = make_app(DrawingPool())
    async with app.listening() as url:
        await browser.open(url + "/playground")
        await generate(browser, 1)
        await browser.type(PROMPT, "a green tree")
        await generate(browser, 2)
        await browser.open(url + "/playground")
        await browser.wait_for(f"document.querySelectorAll('{ENTRY} img').length == 2")
        labels = await browser.script(f"return [...document.querySelectorAll('{ENTRY}')].map((each) => each.title)")
        assert labels == ["a green tree", "a red sailboat"]
        # Only ids are stored.
        stored = await browser.script("return Object.values({...localStorage}).join()")
        assert all(each in stored for each in app.prediction_ids)
        assert "tree" not in stored


async def test_every_setting_is_recalled_with_its_image_and_mask(browser: Browser, tmp_path: Path) -> None:
    image, pool = tmp_path / "image.webp", DrawingPool()
    image.write_bytes(draw((512, 512), seed=3))
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.type(PROMPT, "a yellow hat")
        await browser.type(STEPS, "12")
        await browser.choose_file("[data-test=image-file]", image)
        await browser.drag(".mask-overlay", (0.3, 0.3), (0.6, 0.3))
        await generate(browser, 1)
        await browser.click("[data-test=reset]")
        await browser.wait_for("document.querySelector('.thumbnail') === null")
        assert await value(browser, PROMPT) == FIRST_INPUTS["prompt"]
        await browser.click(ENTRY)
        await browser.click("[data-test=recall]")
        await browser.wait_for("document.querySelector('.thumbnail') !== null")
        assert (await value(browser, PROMPT), await value(browser, STEPS)) == ("a yellow hat", "12")
        await browser.click("[data-tab=image]")
        await browser.wait_for_text("[data-test=sent-as]", "mask covers")
        await generate(browser, 2)
    first, second = pool.plans
    assert first == second
    (first_image, first_mask), (second_image, second_mask) = pool.edit(0), pool.edit(1)
    assert (first_image == second_image).all()
    assert (first_mask == second_mask).mean() > 0.999


async def test_variations_have_the_next_seeds(browser: Browser) -> None:
    pool = DrawingPool()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.type(SEED, "40")
        await generate(browser, 1)
        await browser.click("[aria-label^=Variations]")
        await browser.wait_for(f"document.querySelectorAll('{OUTPUT}').length == 4")
        assert await value(browser, SEED) == "41"
    assert [plan.seeds for plan in pool.plans] == [(40,), (41, 42, 43, 44)]


async def test_other_lora_keeps_the_seed_of_the_image(browser: Browser) -> None:
    pool = DrawingPool()
    async with make_app(pool).listening() as url:
        await browser.open(url + "/playground")
        await browser.type("[data-test=number-num_outputs]", "2")
        await browser.type(SEED, "40")
        await generate(browser, 1)
        await browser.script("document.querySelectorAll('[aria-label^=\"Same seed\"]')[1].click()")
        await browser.wait_for("document.activeElement.id == 'input-replicate_weights'")
        await browser.type("#input-replicate_weights", "embedded:sketch")
        await generate(browser, 2)
    assert [plan.seeds for plan in pool.plans] == [(40, 41), (41,)]
    assert len(pool.plans[1].loras) == 1


async def test_link_shows_the_prediction_and_its_settings(browser: Browser) -> None:
    app = make_app(DrawingPool())
    created = await app.create({"prompt": "a blue key", "num_inference_steps": 9, "seed": 5})
    await app.service.wait(created.id)
    async with app.listening() as url:
        await browser.open(f"{url}/playground#prediction={created.id}")
        await browser.find(OUTPUT)
        await browser.wait_for(f"document.querySelector('{STEPS}').value == '9'")
        assert (await value(browser, PROMPT), await value(browser, SEED)) == ("a blue key", "5")


async def test_entry_names_its_prompt_status_and_count(browser: Browser) -> None:
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(url + "/playground")
        await browser.type("[data-test=number-num_outputs]", "2")
        await generate(browser, 1)
        label = f"document.querySelector('{ENTRY}').ariaLabel"
        name = await browser.wait_for(f"{label}.includes('succeeded') && {label}")
    assert name == f"{FIRST_INPUTS['prompt']} (succeeded, 2 images)"


async def test_removed_prediction_leaves_the_gallery(browser: Browser) -> None:
    async with make_app(DrawingPool()).listening() as url:
        await browser.open(url + "/playground")
        await generate(browser, 1)
        await browser.script("localStorage.setItem('flux-serve.predictions', JSON.stringify(['gone']))")
        await browser.open(url + "/playground")
        await browser.find(GENERATE)
        await browser.wait_for("JSON.parse(localStorage.getItem('flux-serve.predictions')).length == 0")


async def test_download_has_the_name_of_the_image(browser: Browser) -> None:
    app = make_app(DrawingPool())
    async with app.listening() as url:
        await browser.open(url + "/playground")
        await generate(browser, 1)
        name = await browser.script("return document.querySelector('a[download]').download")
    assert name == f"{app.prediction_ids[0]}-0.webp"
