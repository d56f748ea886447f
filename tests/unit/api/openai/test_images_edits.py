"""Edits of OpenAI's Images API: the image, the mask, the size and further fields."""

import io

import numpy as np
import pytest
from PIL import Image

from serve.events import Started
from tests.app_factory import make_app
from tests.fakes import DONE, ONE_IMAGE, FakePool, image_finished
from tests.openai_requests import CAT, EDITS, IMAGE, edit, events_of, inputs_of, mask_png

TWO_IMAGES = (Started(), image_finished(0), image_finished(1), DONE)


async def test_edit_keeps_the_size_of_its_image() -> None:
    pool = FakePool(ONE_IMAGE)
    response = await edit(make_app(pool))
    assert response.status_code == 200, response.text
    assert response.json()["size"] == "320x256"
    [(plan, image, mask)] = pool.calls
    assert (plan.size, plan.strength, mask) == ((320, 256), 0.8, None)
    assert image is not None
    assert np.array_equal(image, np.asarray(Image.open(io.BytesIO(IMAGE))))


@pytest.mark.parametrize("name", ["image", "image[]", "image[0]"])
async def test_image_may_be_sent_as_an_array(name: str) -> None:
    app = make_app(FakePool(ONE_IMAGE))
    async with app.http as client:
        response = await client.post(EDITS, data=CAT, files=[(name, ("boat.png", IMAGE))])
    assert response.status_code == 200, response.text


async def test_transparent_area_of_a_mask_is_repainted() -> None:
    pool = FakePool(ONE_IMAGE)
    assert (await edit(make_app(pool), mask=mask_png(320, 256, 100))).status_code == 200
    mask = pool.calls[0][2]
    assert mask is not None
    assert mask.shape == (256, 320)
    assert (mask[:, :100] == 255).all()
    assert (mask[:, 100:] == 0).all()


async def test_size_of_an_edit_scales_and_crops_image_and_mask() -> None:
    pool = FakePool(ONE_IMAGE)
    response = await edit(make_app(pool), mask=mask_png(320, 256, 160), size="512x512")
    assert response.json()["size"] == "512x512"
    [(plan, image, mask)] = pool.calls
    assert plan.size == (512, 512)
    assert image is not None
    assert mask is not None
    assert image.shape[:2] == mask.shape == (512, 512)
    assert (mask[:, :250] == 255).all()
    assert (mask[:, 262:] == 0).all()


async def test_fields_of_a_form_become_inputs() -> None:
    app = make_app(FakePool(TWO_IMAGES))
    response = await edit(
        app, n="2", prompt_strength="0.5", seed="3", disable_safety_checker="true", input_fidelity="high",
        output_format="webp",
    )  # fmt: skip
    assert response.status_code == 200, response.text
    inputs = await inputs_of(app)
    assert (inputs["num_outputs"], inputs["seed"], inputs["prompt_strength"]) == (2, 3, "0.5")
    assert inputs["output_format"] == "webp"


async def test_edit_is_streamed() -> None:
    [event] = events_of(await edit(make_app(FakePool(ONE_IMAGE)), stream="true"))
    assert (event["type"], event["size"]) == ("image_edit.completed", "320x256")
