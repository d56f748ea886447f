"""Bad input is rejected with the right status and field, and leaves every pool working and idle."""

from typing import Any

import pytest

from serve.launch.subprocess_service import LocalService
from tests.cluster.client import SMALL, connect, create, finish, predict, until, white_png
from tests.cluster.probe import Probe
from tests.images import data_uri

INVALID_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({}, "input.prompt"),
    ({"prompt": 5}, "input.prompt"),
    ({"prompt": "x" * 10_001}, "input.prompt"),
    ({"prompt": "x", "num_outputs": 9}, "input.num_outputs"),
    ({"prompt": "x", "seed": 1.5}, "input.seed"),
    ({"prompt": "x", "aspect_ratio": "custom", "width": 512}, "input.height"),
    ({"prompt": "x", "mask": data_uri(white_png(64, 64))}, "input.mask"),
    ({"prompt": "x", "replicate_weights": "not a LoRA"}, "input.replicate_weights"),
    ({"prompt": "x", "image": "data:image/png;base64,%%%"}, "input.image"),
    ({"prompt": "x", "image": data_uri(b"not an image")}, "input.image"),
    ({"prompt": "x", "image": data_uri(white_png(256, 256)[:90])}, "input.image"),
    ({"prompt": "x", "image": data_uri(white_png(20, 300))}, "input.image"),
    ({"prompt": "x", "image": data_uri(white_png(8000, 8000))}, "input.image"),
]


@pytest.mark.parametrize(("inputs", "field"), INVALID_INPUTS)
def test_invalid_input_is_rejected_with_its_field(service: LocalService, inputs: dict[str, Any], field: str) -> None:
    with connect(service) as client:
        response = client.post("/v1/predictions", json={"input": inputs})
        cog_response = client.post("/predictions", json={"input": inputs})
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert [error["field"] for error in response.json()["invalid_fields"]] == [field]
    assert cog_response.status_code == 422
    assert cog_response.json()["detail"][0]["loc"] == ["body", *field.split(".")]


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"\xff\xfe", 400), (b"[]", 400), (b'{"input": 1}', 422), (b"[" * 100_000, 400)],
)
def test_malformed_body_is_rejected(service: LocalService, content: bytes, status: int) -> None:
    with connect(service) as client:
        for path in ("/v1/predictions", "/predictions"):
            assert client.post(path, content=content).status_code == status


def test_oversized_body_is_rejected_with_413(service: LocalService) -> None:
    with connect(service) as client:
        assert client.post("/v1/predictions", content=b"x" * (33 * 2**20)).status_code == 413


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "http://localhost:8265/a.png",
        "http://[::1]/a.png",
        "http://2130706433/a.png",
        "http://0x7f.1/a.png",
        "http://10.0.0.1/a.png",
        "http://169.254.169.254/latest/meta-data",
    ],
)
def test_private_image_url_fails_only_the_prediction(service: LocalService, url: str) -> None:
    prediction = finish(service, create(service, prompt="x", image=url)["id"])
    assert prediction["status"] == "failed"
    assert "public" in prediction["error"]


def test_unknown_id_path_and_version_are_rejected(service: LocalService) -> None:
    with connect(service) as client:
        assert client.get("/v1/predictions/nothing").status_code == 404
        assert client.post("/v1/predictions/nothing/cancel").status_code == 404
        assert client.get("/outputs/nothing/out-0.webp").status_code == 404
        assert client.get("/outputs/..%2f..%2fetc/passwd").status_code == 404
        assert client.get("/v2").status_code == 404
        unknown_version = client.post("/v1/predictions", json={"version": "abc", "input": {"prompt": "x"}})
    assert unknown_version.status_code == 422
    assert unknown_version.json()["title"] == "Invalid version or not permitted"


def test_every_pool_still_generates_and_becomes_idle(service: LocalService, probe: Probe) -> None:
    for pool, pool_inputs in (("dev-bf16", {}), ("dev-fp8", {"go_fast": True}), ("schnell", {"model": "schnell"})):
        inputs: dict[str, Any] = {**SMALL, **pool_inputs}
        assert predict(service, prompt="a boat", **inputs)["status"] == "succeeded"
        until(lambda: probe.stats(pool), lambda stats: stats["images"] == 0)  # noqa: B023 - called in this iteration
