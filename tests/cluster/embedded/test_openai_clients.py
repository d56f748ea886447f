"""OpenAI's official clients against the running service."""

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from PIL import Image

from serve.launch.subprocess_service import LocalService
from serve.settings import Settings
from tests.cluster.client import cancel, contents, create, predict, size_of
from tests.images import data_uri, png
from tests.js_client import JsClient

IMAGE = png(192, 128)
SIZE = "512x512"
OWN: dict[str, Any] = {"num_inference_steps": 2, "seed": 5, "disable_safety_checker": True}
"""The further fields of `openai_cases.js`."""
INPUTS: dict[str, Any] = {**OWN, "prompt": "a cat", "output_format": "png"}


@pytest.fixture
def client(service: LocalService) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as openai_client:
        yield openai_client


def mask_file() -> bytes:
    """A mask in OpenAI's form: its left half is transparent."""
    mask = Image.new("RGBA", (192, 128), "black")
    mask.paste((0, 0, 0, 0), (0, 0, 96, 128))
    file = io.BytesIO()
    mask.save(file, "png")
    return file.getvalue()


def white_mask_file() -> bytes:
    mask = Image.new("L", (192, 128), 0)
    mask.paste(255, (0, 0, 96, 128))
    file = io.BytesIO()
    mask.save(file, "png")
    return file.getvalue()


def image_of(encoded: str | None) -> bytes:
    assert encoded is not None
    return base64.b64decode(encoded)


def test_generation_gives_the_image_of_a_prediction(service: LocalService, client: OpenAI) -> None:
    [expected] = contents(predict(service, **INPUTS, megapixels="0.25"))
    response = client.images.generate(model="gpt-image-1", prompt="a cat", size=SIZE, extra_body=OWN)
    assert response.data is not None
    assert image_of(response.data[0].b64_json) == expected
    assert response.size == SIZE
    *partial, event = client.images.generate(prompt="a cat", size=SIZE, stream=True, partial_images=2, extra_body=OWN)
    assert {each.type for each in partial} <= {"image_generation.partial_image"}
    for each in partial:
        assert size_of(image_of(each.b64_json)) == (512, 512)
    assert event.type == "image_generation.completed"
    assert image_of(event.b64_json) == expected


def test_edit_with_a_mask_gives_the_image_of_a_prediction(service: LocalService, client: OpenAI) -> None:
    inputs = {**INPUTS, "image": data_uri(IMAGE), "mask": data_uri(white_mask_file())}
    [expected] = contents(predict(service, **inputs))
    response = client.images.edit(image=IMAGE, mask=mask_file(), prompt="a cat", extra_body=OWN)
    assert response.data is not None
    edited = image_of(response.data[0].b64_json)
    assert edited == expected
    assert (size_of(edited), response.size) == ((192, 128), "192x128")


def test_url_of_an_image_can_be_read(client: OpenAI) -> None:
    response = client.images.generate(
        model="dall-e-3", prompt="a cat", size="256x256", response_format="url", extra_body=OWN
    )
    assert response.data is not None
    uri = response.data[0].url or ""
    assert size_of(base64.b64decode(uri.partition("base64,")[2])) == (256, 256)


def test_errors_have_the_classes_of_the_client(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as invalid:
        client.images.generate(prompt="a cat", extra_body={"num_inference_steps": 99})
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(prompt="a cat", model="gpt-6")
    with pytest.raises(openai.BadRequestError) as lora:
        client.images.generate(prompt="a cat", extra_body={**OWN, "replicate_weights": "embedded:none"})
    assert (invalid.value.param, unknown.value.code) == ("num_inference_steps", "model_not_found")
    assert lora.value.param == "replicate_weights"
    assert invalid.value.request_id


def test_full_pool_is_a_rate_limit_error(service: LocalService, client: OpenAI) -> None:
    slow = {**INPUTS, "num_inference_steps": 50}
    created = [create(service, **slow)["id"] for _ in range(Settings().pools["dev-bf16"].max_in_flight)]
    try:
        with pytest.raises(openai.RateLimitError) as raised:
            client.images.generate(prompt="a cat", size=SIZE, extra_body=OWN)
    finally:
        for prediction_id in created:
            cancel(service, prediction_id)
    assert int(raised.value.response.headers["Retry-After"]) >= 1
    assert raised.value.code == "rate_limit_exceeded"


def test_javascript_client_generates_the_same_images(
    service: LocalService, client: OpenAI, js_client: JsClient, tmp_path: Path
) -> None:
    def run(case: str) -> Any:
        return asyncio.run(js_client.run(case, service.url, tmp_path / "boat.png", script="openai_cases.js"))

    (tmp_path / "boat.png").write_bytes(mask_file())
    generated = client.images.generate(prompt="a cat", size=SIZE, extra_body=OWN).data
    edited = client.images.edit(image=mask_file(), mask=mask_file(), prompt="a cat", size=SIZE, extra_body=OWN).data
    assert generated is not None
    assert edited is not None
    assert run("generate") == [image.b64_json for image in generated]
    assert run("edit") == [image.b64_json for image in edited]
    *partial, completed = run("stream")
    assert {each["type"] for each in partial} <= {"image_generation.partial_image"}
    assert completed == {"type": "image_generation.completed", "content": generated[0].b64_json}
    assert run("unknownModel")["code"] == "model_not_found"
