"""Errors of OpenAI's Images API: every path and status has the same form."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from serve.errors import InvalidLora
from serve.events import ImageFlagged, Started
from serve.settings import PoolSettings, Settings
from tests.app_factory import make_app
from tests.fakes import DONE, ONE_IMAGE, FakeLoraCache, FakePool, image_finished
from tests.images import png
from tests.openai_requests import (
    CAT,
    EDITS,
    GENERATIONS,
    IMAGE,
    error_of,
    events_of,
    generate,
    mask_png,
)

TWO_IMAGES = (Started(), image_finished(0), image_finished(1), DONE)
ONE_IN_FLIGHT = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})
FAILED_LORA = FakeLoraCache({"owner/name": InvalidLora("owner/name", "it is for another model", "replicate_weights")})


async def test_unknown_model_is_not_found() -> None:
    response = await generate(make_app(FakePool(ONE_IMAGE)), model="gpt-6")
    error = error_of(response)
    assert response.status_code == 404
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "model_not_found", "model")
    assert "gpt-6" in error["message"]


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
        assert (full.status_code, full.headers["Retry-After"]) == (429, "10")
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
