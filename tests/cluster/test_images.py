"""Image-to-image and inpainting over HTTP, with images as `data:` URIs and as URLs."""

import http.server
import io
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve.launch.subprocess_service import LocalService, local_service
from tests.cluster.client import SMALL, contents, predict
from tests.images import data_uri

SIZE = (192, 128)
INPUTS: dict[str, Any] = {**SMALL, "prompt": "a lighthouse", "model": "schnell", "num_inference_steps": 4, "seed": 5}
del INPUTS["megapixels"]


def input_image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8))


def left_half_mask() -> Image.Image:
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[:, : SIZE[0] // 2] = 255
    return Image.fromarray(mask)


def png_file(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


def pixels(prediction: dict[str, Any]) -> "np.ndarray[Any, Any]":
    return np.asarray(Image.open(io.BytesIO(contents(prediction)[0])))


@pytest.fixture(scope="module")
def image_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a web server with the image and the mask."""
    folder: Path = tmp_path_factory.mktemp("images")
    (folder / "image.png").write_bytes(png_file(input_image()))
    (folder / "mask.png").write_bytes(png_file(left_half_mask()))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def service(environment: dict[str, str], image_host: str) -> Iterator[LocalService]:
    unused = [f"pools.{pool}.scaling.min_replicas=0" for pool in ("dev-bf16", "dev-fp8")]
    settings = [f"fetch.allowed_hosts=[{image_host!r}]", *unused]
    assignments = [part for setting in settings for part in ("--set", setting)]
    with local_service(*assignments, environment=environment) as running_service:
        yield running_service


def test_inpainting_changes_only_the_masked_pixels(service: LocalService) -> None:
    output = pixels(
        predict(service, **INPUTS, image=data_uri(png_file(input_image())), mask=data_uri(png_file(left_half_mask())))
    )
    original, middle = np.asarray(input_image()), SIZE[0] // 2
    assert np.array_equal(output[:, middle:], original[:, middle:])
    assert not np.array_equal(output[:, :middle], original[:, :middle])


def test_higher_strength_changes_the_image_more(service: LocalService) -> None:
    original = np.asarray(input_image()).astype(float)

    def distance(strength: float) -> float:
        output = pixels(predict(service, **INPUTS, image=data_uri(png_file(input_image())), prompt_strength=strength))
        return float(np.abs(output - original).mean())

    assert distance(0) < distance(0.5) < distance(1)


def test_image_urls_give_the_same_result_as_data_uris(service: LocalService, image_host: str) -> None:
    urls = {"image": f"http://{image_host}/image.png", "mask": f"http://{image_host}/mask.png"}
    uris = {"image": data_uri(png_file(input_image())), "mask": data_uri(png_file(left_half_mask()))}
    from_urls, from_uris = predict(service, **INPUTS, **urls), predict(service, **INPUTS, **uris)
    assert contents(from_urls) == contents(from_uris)


def test_missing_image_fails_the_prediction_with_its_url_and_status(service: LocalService, image_host: str) -> None:
    prediction = predict(service, **INPUTS, image=f"http://{image_host}/missing.png")
    assert prediction["status"] == "failed"
    assert "missing.png" in prediction["error"]
    assert "404" in prediction["error"]
