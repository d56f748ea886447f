"""The colours of the page in a real browser."""

import pytest

from tests.app_factory import make_app
from tests.browser import Browser
from tests.drawing_pool import DrawingPool

GENERATE, OUTPUT = "[data-test=generate]", "[data-test=output]"
FAINT_TEXTS = """
    const context = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
    const rgba = (colour) => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data;
        return [red, green, blue, alpha / 255];
    };
    const blend = (top, bottom) => bottom.map((each, index) => top[index] * top[3] + each * (1 - top[3]));
    const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const luminance = ([red, green, blue]) =>
        0.2126 * linear(red / 255) + 0.7152 * linear(green / 255) + 0.0722 * linear(blue / 255);
    const ancestors = (element) => (element ? [element, ...ancestors(element.parentElement)] : []);
    const background = (element) => {
        const layers = ancestors(element).map((each) => rgba(getComputedStyle(each).backgroundColor));
        return layers.reduceRight((below, layer) => blend(layer, below), [255, 255, 255]);
    };
    const contrast = (element) => {
        const below = background(element);
        const text = blend(rgba(getComputedStyle(element).color), below);
        const [dark, light] = [luminance(below), luminance(text)].sort((one, other) => one - other);
        return (light + 0.05) / (dark + 0.05);
    };
    const hasText = ({childNodes}) => [...childNodes].some((each) => each.nodeType == 3 && each.data.trim());
    // Disabled controls may be faint.
    const isEnabled = (element) => !element.closest(':disabled') && !element.parentElement.querySelector(':disabled');
    return [...document.querySelectorAll('body *')]
        .filter((each) => hasText(each) || each.matches('select, textarea'))
        .filter((each) => each.checkVisibility() && isEnabled(each) && contrast(each) < 4.5)
        .map((each) => `${each.outerHTML.slice(0, 80)} ${contrast(each).toFixed(2)}`);
"""
"""The texts with a contrast below 4.5, which WCAG 2 asks for at level AA."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_texts_have_contrast(browser: Browser, scheme: str) -> None:
    async with make_app(DrawingPool(flagged=(1,))).listening() as url:
        await browser.use_colour_scheme(scheme)
        await browser.open(url + "/playground")
        await browser.type("[data-test=number-num_outputs]", "2")
        await browser.click(GENERATE)
        await browser.find(OUTPUT)
        await browser.script("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        # The pointer is over the button.
        assert await browser.script(FAINT_TEXTS) == []
        await browser.type("[data-test=number-num_inference_steps]", "99")
        await browser.click(GENERATE)
        await browser.find(".field-error")
        for clicked, shown in (
            ("[aria-label^=Edit]", ".mask-overlay"),
            ("[data-tab=code]", "[data-test=code]"),
            ("[data-tab=grid]", "[data-test=grid-run]"),
        ):
            await browser.click(clicked)
            await browser.find(shown)
            assert await browser.script(FAINT_TEXTS) == []
