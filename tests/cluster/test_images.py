"""Image to image and inpainting over HTTP, with pictures as `data:` URIs and behind URLs."""

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
from tests.cluster.client import SMALL, contents, data_uri, predict

SIZE = (192, 128)
INPUTS: dict[str, Any] = {**SMALL, "prompt": "a lighthouse", "model": "schnell", "num_inference_steps": 4, "seed": 5}
del INPUTS["megapixels"]


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8))


def left_half() -> Image.Image:
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[:, : SIZE[0] // 2] = 255
    return Image.fromarray(mask)


def file(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "png")
    return content.getvalue()


def pixels(prediction: dict[str, Any]) -> "np.ndarray[Any, Any]":
    return np.asarray(Image.open(io.BytesIO(contents(prediction)[0])))


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server with the two pictures: its host and port."""
    folder: Path = tmp_path_factory.mktemp("web")
    (folder / "picture.png").write_bytes(file(picture()))
    (folder / "mask.png").write_bytes(file(left_half()))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def service(environment: dict[str, str], web: str) -> Iterator[LocalService]:
    unused = [f"pools.{pool}.scaling.min_replicas=0" for pool in ("dev-bf16", "dev-fp8")]
    settings = [f"fetch.allowed_hosts=[{web!r}]", *unused]
    assignments = [part for setting in settings for part in ("--set", setting)]
    with local_service(*assignments, environment=environment) as running:
        yield running


def test_an_inpaint_repaints_the_mask_and_keeps_every_other_pixel(service: LocalService) -> None:
    drawn = pixels(predict(service, **INPUTS, image=data_uri(file(picture())), mask=data_uri(file(left_half()))))
    given, middle = np.asarray(picture()), SIZE[0] // 2
    assert np.array_equal(drawn[:, middle:], given[:, middle:])
    assert not np.array_equal(drawn[:, :middle], given[:, :middle])


def test_strength_says_how_much_of_the_picture_is_left(service: LocalService) -> None:
    given = np.asarray(picture()).astype(float)

    def distance(strength: float) -> float:
        drawn = pixels(predict(service, **INPUTS, image=data_uri(file(picture())), prompt_strength=strength))
        return float(np.abs(drawn - given).mean())

    assert distance(0) < distance(0.5) < distance(1)


def test_pictures_behind_urls_give_the_same_as_data_uris(service: LocalService, web: str) -> None:
    urls = {"image": f"http://{web}/picture.png", "mask": f"http://{web}/mask.png"}
    uris = {"image": data_uri(file(picture())), "mask": data_uri(file(left_half()))}
    by_url, by_uri = predict(service, **INPUTS, **urls), predict(service, **INPUTS, **uris)
    assert contents(by_url) == contents(by_uri)


def test_a_missing_picture_fails_the_prediction_and_says_why(service: LocalService, web: str) -> None:
    prediction = predict(service, **INPUTS, image=f"http://{web}/nothing.png")
    assert prediction["status"] == "failed"
    assert "nothing.png" in prediction["error"]
    assert "404" in prediction["error"]
