"""Replicate's official clients against the running service: local files as images and LoRAs."""

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

from replicate.client import Client

from serve.launch.subprocess_service import LocalService
from serve.model_specs import EMBEDDED_MODELS_FOLDER, embedded_lora_file
from tests.cluster.client import connect, contents, predict, size_of
from tests.images import data_uri, png
from tests.js_client import JsClient
from tests.python2_client import Python2Client

IMAGE = png(192, 128)
LORA_FILE = embedded_lora_file("sketch", EMBEDDED_MODELS_FOLDER)
MODEL = "fofr/flux-handwriting-and-sketch"
INPUTS: dict[str, Any] = {
    "prompt": "a cat",
    "model": "schnell",
    "num_inference_steps": 2,
    "megapixels": "0.25",
    "seed": 5,
    "replicate_weights": "",
    "extra_lora": "",
    "disable_safety_checker": True,
    "output_format": "png",
}
"""The inputs of `cases.js`."""


def run(service: LocalService, **inputs: Any) -> bytes:
    """The image of a prediction by the Python client."""
    client = Client(base_url=service.url, headers={"Connection": "close"})
    output = client.run(MODEL, {**INPUTS, **inputs})
    assert isinstance(output, list)
    return bytes(output[0].read())


def run_js(js_client: JsClient, service: LocalService, case: str, file: Path | str = "") -> bytes:
    """The image of a prediction by the JavaScript client."""
    return base64.b64decode(asyncio.run(js_client.run(case, service.url, file))[0])


def test_local_image_gives_the_same_result_as_its_data_uri(service: LocalService, tmp_path: Path) -> None:
    (tmp_path / "boat.png").write_bytes(IMAGE)
    expected = contents(predict(service, **INPUTS, image=data_uri(IMAGE), mask=data_uri(IMAGE)))[0]
    assert size_of(expected) == (192, 128)
    with (tmp_path / "boat.png").open("rb") as image:
        assert run(service, image=image, mask=io.BytesIO(IMAGE)) == expected


def test_local_lora_gives_the_same_result_as_its_name(service: LocalService) -> None:
    expected = contents(predict(service, **{**INPUTS, "replicate_weights": "embedded:sketch"}))[0]
    with LORA_FILE.open("rb") as weights:
        assert run(service, replicate_weights=weights) == expected
    assert run(service) != expected


def test_javascript_client_generates_the_same_images(
    service: LocalService, js_client: JsClient, tmp_path: Path
) -> None:
    (tmp_path / "boat.png").write_bytes(IMAGE)
    assert run_js(js_client, service, "text") == run(service)
    assert run_js(js_client, service, "buffer", tmp_path / "boat.png") == run(service, image=io.BytesIO(IMAGE))
    from_lora = run_js(js_client, service, "bufferAsLora", LORA_FILE)
    assert from_lora == run(service, replicate_weights="embedded:sketch")


def test_version_2_of_the_python_client_generates_the_same_images(
    service: LocalService, python2_client: Python2Client, tmp_path: Path
) -> None:
    (tmp_path / "boat.png").write_bytes(IMAGE)
    [image] = asyncio.run(python2_client.run("text", service.url))
    assert base64.b64decode(image) == run(service)
    [image] = asyncio.run(python2_client.run("file", service.url, tmp_path / "boat.png"))
    assert base64.b64decode(image) == run(service, image=io.BytesIO(IMAGE))


def test_clients_read_models_collections_and_hardware(
    service: LocalService, js_client: JsClient, python2_client: Python2Client
) -> None:
    client = Client(base_url=service.url, headers={"Connection": "close"})
    models = [model.id for model in client.models.search("handwriting").results]
    assert models == [MODEL]
    assert client.models.get(MODEL).latest_version is not None
    found, found_by_js = (asyncio.run(each.run("discovery", service.url)) for each in (python2_client, js_client))
    assert found["hardware"] == found_by_js["hardware"] == ["dev-bf16", "dev-fp8", "schnell"]
    assert found["found"] == found_by_js["found"] == ["flux-handwriting-and-sketch"]
    assert asyncio.run(python2_client.run("models", service.url))["version"] == "d592f697"
    assert client.hardware.list()[0].sku == "dev-bf16"


def test_file_is_removed_from_the_service(service: LocalService) -> None:
    with connect(service) as client:
        url = client.post("/v1/files", files={"content": ("boat.png", IMAGE)}).raise_for_status().json()["urls"]["get"]
        assert url.startswith(service.url)
        assert client.get(f"{url}/download").content == IMAGE
        assert client.delete(url).status_code == 204
        response = client.post("/v1/predictions", json={"input": {**INPUTS, "image": url}})
    assert response.status_code == 422
