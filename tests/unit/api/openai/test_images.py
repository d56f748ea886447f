"""Generations of OpenAI's Images API: responses, inputs of predictions, and streams."""

import asyncio
import base64
from typing import Any

import httpx
import pytest

from serve.events import ImageFlagged, Started
from serve.settings import OutputSettings, ServedModel, Settings
from tests.app_factory import make_app
from tests.fakes import DONE, ONE_IMAGE, WEBP, FakePool, image_finished
from tests.openai_requests import (
    CAT,
    GENERATIONS,
    edit,
    error_of,
    events_of,
    generate,
    inputs_of,
)

ENCODED = base64.b64encode(WEBP).decode()
TWO_IMAGES = (Started(), image_finished(0), image_finished(1), DONE)


async def test_response_has_every_field() -> None:
    response = await generate(make_app(FakePool(ONE_IMAGE)), size="512x512", quality="low")
    body = response.json()
    assert response.status_code == 200
    assert body.keys() == {"created", "data", "background", "output_format", "quality", "size", "usage"}
    assert body["data"] == [{"b64_json": ENCODED}]
    assert (body["background"], body["output_format"], body["quality"]) == ("opaque", "png", "low")
    assert body["size"] == "512x512"
    assert isinstance(body["created"], int)


async def test_usage_counts_the_tokens_of_the_transformer() -> None:
    usage = (await generate(make_app(FakePool(TWO_IMAGES)), size="512x512", n=2)).json()["usage"]
    assert usage["input_tokens_details"] == {"text_tokens": 64, "image_tokens": 0}
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (64, 512, 576)
    edited = (await edit(make_app(FakePool(ONE_IMAGE)))).json()["usage"]
    assert edited["input_tokens_details"] == {"text_tokens": 64, "image_tokens": 80}


@pytest.mark.parametrize(
    ("parameters", "inputs"),
    [
        ({}, {"num_outputs": 1, "output_format": "png"}),
        ({"size": "auto", "n": 2}, {"num_outputs": 2}),
        ({"size": "1024x1024"}, {"aspect_ratio": "1:1", "megapixels": "1"}),
        ({"size": "512x512"}, {"aspect_ratio": "1:1", "megapixels": "0.25"}),
        ({"size": "256x256"}, {"aspect_ratio": "custom", "width": 256, "height": 256}),
        ({"size": "1536x1024"}, {"aspect_ratio": "custom", "width": 1440, "height": 960}),
        ({"quality": "low"}, {"num_inference_steps": 14}),
        ({"quality": "medium"}, {"num_inference_steps": 28}),
        ({"quality": "hd"}, {"num_inference_steps": 42}),
        ({"quality": "low", "num_inference_steps": 3}, {"num_inference_steps": 3}),
        ({"output_format": "jpeg"}, {"output_format": "jpg", "output_quality": 100}),
        ({"output_format": "webp", "output_compression": 40}, {"output_format": "webp", "output_quality": 40}),
        ({"seed": "7", "guidance_scale": 2.5, "go_fast": True}, {"seed": 7, "guidance_scale": 2.5, "go_fast": True}),
        (
            {"replicate_weights": "owner/name", "lora_scale": 0.5, "extra_lora": "owner/other", "extra_lora_scale": 2},
            {"replicate_weights": "owner/name", "lora_scale": 0.5, "extra_lora": "owner/other", "extra_lora_scale": 2},
        ),
        ({"disable_safety_checker": True, "aspect_ratio": "16:9"}, {"aspect_ratio": "16:9"}),
        ({"user": "me", "style": "vivid", "moderation": "low", "background": "opaque"}, {}),
        ({"safety_identifier": "me", "complexity": "low", "n": None}, {"num_outputs": 1}),
    ],
)
async def test_parameters_become_inputs(parameters: dict[str, Any], inputs: dict[str, Any]) -> None:
    app = make_app(FakePool(TWO_IMAGES if parameters.get("n") == 2 else ONE_IMAGE))
    response = await generate(app, **parameters)
    assert response.status_code == 200, response.text
    given = await inputs_of(app)
    assert {name: given.get(name) for name in inputs} == inputs


async def test_size_of_the_response_is_the_true_one() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    assert (await generate(app, size="1792x1024")).json()["size"] == "1440x816"
    assert (await generate(app)).json()["size"] == "1024x1024"


@pytest.mark.parametrize(
    ("model", "served"),
    [
        (None, "black-forest-labs/flux-dev-lora"),
        ("fofr/flux-handwriting-and-sketch", "fofr/flux-handwriting-and-sketch"),
        ("flux-handwriting-and-sketch", "fofr/flux-handwriting-and-sketch"),
        ("gpt-image-1", "black-forest-labs/flux-dev-lora"),
        ("dall-e-3", "black-forest-labs/flux-dev-lora"),
    ],
)
async def test_model_is_a_served_model_or_an_alias(model: str | None, served: str) -> None:
    app = make_app(FakePool(ONE_IMAGE))
    assert (await generate(app, model=model)).status_code == 200
    assert (await app.service.get(app.prediction_ids[0])).model == served


async def test_alias_names_a_served_model() -> None:
    app = make_app(
        FakePool(ONE_IMAGE),
        Settings.model_validate({"openai": {"model_aliases": {"my": "fofr/flux-handwriting-and-sketch"}}}),
    )
    assert (await generate(app, model="my")).status_code == 200
    assert (await app.service.get(app.prediction_ids[0])).model == "fofr/flux-handwriting-and-sketch"
    assert (await generate(app, model="gpt-image-1")).status_code == 404


@pytest.mark.parametrize(
    ("parameters", "is_url"),
    [
        ({}, False),
        ({"model": "gpt-image-1"}, False),
        ({"model": "flux-dev-lora"}, False),
        ({"model": "dall-e-3"}, True),
        ({"model": "dall-e-2", "response_format": "b64_json"}, False),
        ({"response_format": "url"}, True),
    ],
)
async def test_response_format_depends_on_the_model(parameters: dict[str, Any], is_url: bool) -> None:
    settings = Settings(outputs=OutputSettings(public_url="https://flux.example"))
    [image] = (await generate(make_app(FakePool(ONE_IMAGE), settings), **parameters)).json()["data"]
    assert image.keys() == ({"url"} if is_url else {"b64_json"})
    if is_url:
        assert image["url"].startswith("https://flux.example/links/")


async def test_url_is_a_data_uri_without_a_public_https_url() -> None:
    [image] = (await generate(make_app(FakePool(ONE_IMAGE)), response_format="url")).json()["data"]
    assert image["url"] == f"data:image/png;base64,{ENCODED}"


async def test_many_images_are_several_predictions_with_consecutive_seeds() -> None:
    app = make_app(FakePool((Started(), *(image_finished(index) for index in range(4)), DONE)))
    assert (await generate(app, n=8, seed=10)).status_code == 200
    inputs = [await inputs_of(app, index) for index in range(2)]
    assert [(each["num_outputs"], each["seed"]) for each in inputs] == [(4, 10), (4, 14)]


async def test_variant_of_the_served_model_decides_the_steps_of_a_quality() -> None:
    model = ServedModel(owner="me", name="fast", versions=("1",), default_inputs={"model": "schnell"})
    app = make_app(FakePool(ONE_IMAGE), Settings(served_models=(model,)))
    await generate(app, quality="high")
    assert (await inputs_of(app))["num_inference_steps"] == 6


async def test_quality_keeps_the_bounds_of_the_served_model() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    assert (await generate(app, model="flux-schnell", quality="high")).status_code == 200
    assert (await inputs_of(app))["num_inference_steps"] == 4


async def test_other_names_of_the_served_model_are_accepted() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    assert (await generate(app, model="flux-dev", guidance=2.5)).status_code == 200
    assert (await inputs_of(app))["guidance_scale"] == 2.5
    assert error_of(await generate(app, model="flux-schnell", guidance=2.5))["param"] == "guidance"


async def test_withheld_images_are_left_out() -> None:
    app = make_app(FakePool((Started(), ImageFlagged(0), image_finished(1), DONE)))
    assert len((await generate(app, n=2)).json()["data"]) == 1
    assert [event["type"] for event in events_of(await generate(app, n=2, stream=True))] == [
        "image_generation.completed"
    ]


async def test_stream_has_an_event_for_each_image() -> None:
    app = make_app(FakePool(TWO_IMAGES))
    events = events_of(await generate(app, n=2, stream=True, partial_images=3, size="512x512"))
    assert [event["type"] for event in events] == ["image_generation.completed"] * 2
    assert events[0].keys() == {
        "type", "b64_json", "created_at", "background", "output_format", "quality", "size", "usage",
    }  # fmt: skip
    assert events[0]["b64_json"] == ENCODED
    assert events[0]["usage"]["output_tokens"] == 256


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnect_cancels_the_prediction(stream: bool) -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    async with app.listening() as url, httpx.AsyncClient(base_url=url) as client:
        request = asyncio.create_task(client.post(GENERATIONS, json={**CAT, "stream": stream}))
        while not pool.calls:
            await asyncio.sleep(0.001)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        prediction = await app.service.wait(app.prediction_ids[0], timeout_s=2)
        pool.may_start.set()  # If the test fails, the server can end nevertheless.
    assert prediction.status == "canceled"
    assert pool.stop_count == 1
