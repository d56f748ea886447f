"""OpenAI's Images API, called in this process: responses, inputs of predictions, streams and errors."""

import asyncio
import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from serve.errors import InvalidLora
from serve.events import ImageFlagged, Started
from serve.settings import OutputSettings, PoolSettings, ServedModel, Settings
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import DONE, ONE_IMAGE, WEBP, FakeLoraCache, FakePool, image_finished
from tests.images import png

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
CAT = {"prompt": "a cat"}
IMAGE = png(320, 256)
ENCODED = base64.b64encode(WEBP).decode()
ONE_IN_FLIGHT = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})
TWO_IMAGES = (Started(), image_finished(0), image_finished(1), DONE)


async def generate(app: AppUnderTest, **body: Any) -> httpx.Response:
    async with app.http as client:
        return await client.post(GENERATIONS, json={**CAT, **body})


async def edit(app: AppUnderTest, image: bytes = IMAGE, mask: bytes | None = None, **fields: str) -> httpx.Response:
    files = {"image": ("boat.png", image, "image/png")}
    if mask is not None:
        files["mask"] = ("mask.png", mask, "image/png")
    async with app.http as client:
        return await client.post(EDITS, data={**CAT, **fields}, files=files)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, which must have every field of OpenAI's form and no other."""
    assert response.headers["Content-Type"] == "application/json"
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return dict(error)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, whose names must be their types."""
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    events = []
    for block in response.text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = (line.partition(": ")[2] for line in block.splitlines())
            events.append(json.loads(data))
            assert events[-1]["type"] == name
    return events


async def inputs_of(app: AppUnderTest, index: int = 0) -> dict[str, Any]:
    return (await app.service.get(app.prediction_ids[index])).inputs


def mask_png(width: int, height: int, transparent_columns: int) -> bytes:
    """A mask in OpenAI's form: its left columns are transparent."""
    pixels = np.full((height, width, 4), 255, np.uint8)
    pixels[:, :transparent_columns, 3] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


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


async def test_unknown_model_is_not_found() -> None:
    response = await generate(make_app(FakePool(ONE_IMAGE)), model="gpt-6")
    error = error_of(response)
    assert response.status_code == 404
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "model_not_found", "model")
    assert "gpt-6" in error["message"]


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
        assert image["url"].startswith("https://flux.example/outputs/")


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


@pytest.mark.parametrize(
    ("parameters", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": 7}, "prompt", "invalid_type"),
        ({"prompt": "x" * 10_001}, "prompt", "string_above_max_length"),
        ({"n": 11}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"size": "big"}, "size", "invalid_value"),
        ({"size": "1024x"}, "size", "invalid_value"),
        ({"size": "0x0"}, "size", "invalid_value"),
        ({"size": "1440x200"}, "size", "invalid_value"),
        ({"size": "512x512", "aspect_ratio": "1:1"}, "size", "invalid_value"),
        ({"quality": "best"}, "quality", "invalid_value"),
        ({"output_format": "gif"}, "output_format", "invalid_value"),
        ({"output_compression": 50}, "output_compression", "invalid_value"),
        ({"background": "transparent"}, "background", "invalid_value"),
        ({"response_format": "file"}, "response_format", "invalid_value"),
        ({"response_format": "url", "stream": True}, "response_format", "invalid_value"),
        ({"partial_images": 4}, "partial_images", "invalid_value"),
        ({"num_inference_steps": 51}, "num_inference_steps", "invalid_value"),
        ({"guidance_scale": "much"}, "guidance_scale", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_value"),
        ({"extra_lora": "no such form"}, "extra_lora", "invalid_value"),
        ({"num_outputs": 2}, "num_outputs", "unknown_parameter"),
        ({"output_quality": 2}, "output_quality", "unknown_parameter"),
        ({"image": "https://example.com/a.png"}, "image", "unknown_parameter"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"svg": {"model": "x"}}, "svg", "unsupported_parameter"),
    ],
)
async def test_invalid_parameter_is_named(parameters: dict[str, Any], param: str, code: str) -> None:
    app = make_app(FakePool(ONE_IMAGE))
    response = await generate(app, **parameters)
    error = error_of(response)
    assert response.status_code == 400
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert param in error["message"]
    assert app.prediction_ids == []


async def test_all_invalid_parameters_are_in_the_message() -> None:
    error = error_of(await generate(make_app(FakePool(ONE_IMAGE)), n=0, quality="best", colour="red"))
    assert all(name in error["message"] for name in ("n:", "quality:", "colour:"))


async def test_size_over_the_limit_of_the_pool_is_named_size() -> None:
    settings = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_megapixels=0.5)})
    app = make_app(FakePool(ONE_IMAGE), settings)
    for size in ("1024x1024", "1000x1000"):
        error = error_of(await generate(app, size=size))
        assert (error["param"], error["message"].count("size:")) == ("size", 1)


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


@pytest.mark.parametrize(
    ("files", "fields", "param", "code"),
    [
        ([], {}, "image", "missing_required_parameter"),
        ([("image[]", ("a.png", IMAGE)), ("image[]", ("b.png", IMAGE))], {}, "image", "invalid_value"),
        ([("image", ("a.png", b""))], {}, "image", "invalid_value"),
        ([("image", ("a.png", b"not an image"))], {}, "image", "invalid_value"),
        ([("image", ("a.png", b"not an image"))], {"size": "512x512"}, "image", "invalid_value"),
        ([("image", ("a.png", png(32, 32)))], {}, "image", "invalid_value"),
        ([("image", ("a.png", IMAGE)), ("mask", ("m.png", IMAGE))], {}, "mask", "invalid_value"),
        ([("image", ("a.png", IMAGE)), ("mask", ("m.png", b"x"))], {}, "mask", "invalid_value"),
        ([("image", ("a.png", IMAGE)), ("mask", ("m.png", mask_png(9, 9, 1)))] * 2, {}, "mask", "invalid_value"),
        ([("image", ("a.png", IMAGE)), ("markup", ("m.png", IMAGE))], {}, "markup", "unsupported_parameter"),
        ([("image", ("a.png", IMAGE))], {"prompt_strength": "2"}, "prompt_strength", "invalid_value"),
        ([("image", ("a.png", IMAGE))], {"svg[model]": "x"}, "svg[model]", "unknown_parameter"),
        ([("boat", ("a.png", IMAGE))], {"image": "https://example.com/a.png"}, "boat", "unsupported_parameter"),
        ([("mask", ("m.png", IMAGE))], {"image": "https://example.com/a.png"}, "image", "invalid_type"),
        ([("image", ("a.png", IMAGE))], {"mask": "https://example.com/a.png"}, "mask", "invalid_type"),
    ],
)
async def test_invalid_part_of_an_edit_is_named(
    files: list[Any], fields: Mapping[str, str], param: str, code: str
) -> None:
    app = make_app(FakePool(ONE_IMAGE))
    async with app.http as client:
        response = await client.post(EDITS, data={**CAT, **fields}, files=files or {"x": ("", b"")})
    error = error_of(response)
    assert response.status_code == 400
    assert param in error["message"]
    if files:
        assert (error["param"], error["code"]) == (param, code)
    assert app.prediction_ids == []


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        (GENERATIONS, "application/json", b"{"),
        (GENERATIONS, "application/json", b"[]"),
        (EDITS, "application/json", b"{}"),
        (EDITS, "multipart/form-data", b"--b\r\n"),
        (EDITS, "multipart/form-data; boundary=b", b"nothing like that"),
    ],
)
async def test_malformed_body_is_rejected(path: str, content_type: str, body: bytes) -> None:
    app = make_app(FakePool(ONE_IMAGE))
    async with app.http as client:
        response = await client.post(path, content=body, headers={"Content-Type": content_type})
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", [GENERATIONS, EDITS])
async def test_oversized_body_is_rejected_with_413(path: str) -> None:
    app = make_app(FakePool(ONE_IMAGE), Settings(max_body_bytes=1000))
    files = {"image": ("a.png", bytes(2_000_000))} if path == EDITS else None
    async with app.http as client:
        response = await client.post(path, **({"files": files} if files else {"json": {"prompt": "x" * 2000}}))
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


async def test_full_pool_responds_with_429_and_a_time() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool, ONE_IN_FLIGHT)
    first = asyncio.create_task(generate(app))
    while not pool.calls:
        await asyncio.sleep(0.001)
    for stream in (False, True):
        full = await generate(app, stream=stream)
        error = error_of(full)
        assert (full.status_code, full.headers["Retry-After"]) == (429, "1")
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    pool.may_start.set()
    assert (await first).status_code == 200


async def test_many_images_that_do_not_all_fit_are_rejected_and_cancelled() -> None:
    pool = FakePool(TWO_IMAGES, may_start=False)
    app = make_app(pool, ONE_IN_FLIGHT)
    assert (await generate(app, n=6)).status_code == 429
    assert [(await app.service.get(each)).status for each in app.prediction_ids] == ["canceled"]


async def test_service_that_is_not_ready_responds_with_503() -> None:
    response = await generate(make_app(FakePool(ONE_IMAGE), opened=False))
    assert (response.status_code, error_of(response)["code"]) == (503, "service_unavailable")


@pytest.mark.parametrize("path", [GENERATIONS, EDITS, "/v1/images", "/v1/images/none"])
async def test_request_without_the_token_is_rejected_with_401(path: str) -> None:
    app = make_app(FakePool(ONE_IMAGE), token="secret")
    async with app.http as client:
        response = await client.post(path, headers={"Authorization": "Bearer wrong"})
    assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", GENERATIONS, 405, "method_not_supported"),
        ("PUT", EDITS, 405, "method_not_supported"),
        ("POST", "/v1/images/variations", 404, "unknown_url"),
        ("GET", "/v1/images", 404, "unknown_url"),
    ],
)
async def test_unknown_path_or_method_has_an_error_in_the_same_form(
    method: str, path: str, status: int, code: str
) -> None:
    app = make_app(FakePool(ONE_IMAGE))
    async with app.http as client:
        response = await client.request(method, path)
    error = error_of(response)
    assert (response.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert response.headers.get("Allow") == ("POST" if status == 405 else None)


async def test_other_paths_keep_their_form() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    async with app.http as client:
        response = await client.get("/v1/imagesque")
    assert (response.status_code, response.headers["Content-Type"]) == (404, "application/problem+json")


FAILED_LORA = FakeLoraCache({"owner/name": InvalidLora("owner/name", "it is for another model", "replicate_weights")})


@pytest.mark.parametrize(
    ("events", "parameters", "status", "code", "param"),
    [
        ((Started(), ImageFlagged(0), DONE), {}, 400, "moderation_blocked", None),
        ((Started(), RuntimeError("secret")), {}, 500, None, None),
        (ONE_IMAGE, {"replicate_weights": "owner/name"}, 400, "invalid_value", "replicate_weights"),
    ],
)
async def test_failed_prediction_is_an_error(
    events: Any, parameters: dict[str, Any], status: int, code: str | None, param: str | None
) -> None:
    app = make_app(FakePool(events), loras=FAILED_LORA)
    response = await generate(app, **parameters)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == ("server_error" if status == 500 else "image_generation_user_error")
    assert "secret" not in response.text
    [event] = events_of(await generate(app, **parameters, stream=True))
    assert event["type"] == "error"
    assert event["error"]["code"] == code


async def test_cancelled_prediction_is_an_error() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    request = asyncio.create_task(generate(app))
    while not pool.calls:
        await asyncio.sleep(0.001)
    await app.service.cancel(app.prediction_ids[0])
    response = await request
    assert (response.status_code, error_of(response)["code"]) == (400, "canceled")


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


async def test_edit_is_streamed() -> None:
    [event] = events_of(await edit(make_app(FakePool(ONE_IMAGE)), stream="true"))
    assert (event["type"], event["size"]) == ("image_edit.completed", "320x256")


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
