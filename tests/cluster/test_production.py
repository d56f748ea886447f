"""`serve_config.yaml` itself on three logical GPUs: only the model folders and the device differ from production."""

from collections.abc import Iterator
from typing import Any

import pytest

from serve.launch.subprocess_service import ROOT, LocalService, local_service
from test_checkpoints.checkpoint import ensure
from test_checkpoints.networks import Geometry
from tests.cluster.client import SMALL, connect, data_uri, png, predict, size_of
from tests.cluster.probe import Probe
from tests.safety_folders import FLAGS_NONE, make_classifier, make_concepts

PUBLIC = "https://flux.example.com"
POOLS = ("dev-bf16", "dev-fp8", "schnell")


@pytest.fixture(scope="module")
def service(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    folder = tmp_path_factory.mktemp("models")
    models = {
        "models.dev.source": ensure("dev", folder, Geometry(max_sequence_length=512)),
        "models.schnell.source": ensure("schnell", folder, Geometry(max_sequence_length=256)),
        "safety.concept_model": make_concepts(folder / "concepts", FLAGS_NONE),
        "safety.classifier_model": make_classifier(folder / "classifier", normal=9.0),
    }
    devices = {f"pools.{pool}.device": "cpu" for pool in POOLS}
    assignments = [part for key, value in (models | devices).items() for part in ("--set", f"{key}={value}")]
    logical = ("--host", "127.0.0.1", "--num-gpus", "3", "--num-cpus", "16")
    with local_service(
        str(ROOT / "serve_config.yaml"), *logical, *assignments, environment=environment, start_timeout_s=600
    ) as running:
        yield running


@pytest.mark.parametrize(
    ("inputs", "pool"),
    [
        ({}, "dev-bf16"),
        ({"go_fast": True}, "dev-fp8"),
        ({"model": "schnell"}, "schnell"),
        ({"model": "schnell", "go_fast": True}, "schnell"),
        ({"go_fast": True, "aspect_ratio": "custom", "width": 264, "height": 256}, "dev-bf16"),
        ({"go_fast": True, "image": True}, "dev-fp8"),
        ({"go_fast": True, "image": True, "mask": True}, "dev-fp8"),
    ],
)
def test_each_kind_of_request_comes_back_from_the_pool_that_the_table_says(
    service: LocalService, inputs: dict[str, Any], pool: str
) -> None:
    pictures = {key: data_uri(png(320, 256)) for key in ("image", "mask") if inputs.get(key)}
    prediction = predict(service, **{**SMALL, "prompt": "a boat", **inputs, **pictures})
    assert prediction["metrics"]["pool"] == pool
    assert prediction["status"] == "succeeded", prediction["error"]
    assert prediction["output"][0].startswith(f"{PUBLIC}/outputs/")
    with connect(service) as client:
        picture = client.get(prediction["output"][0].removeprefix(PUBLIC)).raise_for_status()
    assert picture.headers["content-type"] == "image/png"
    assert size_of(picture.content) == _size(inputs)


def test_the_pools_have_the_replicas_that_the_file_says(probe: Probe) -> None:
    assert probe.replicas("dev-bf16") == probe.replicas("schnell") == 1


def _size(inputs: dict[str, Any]) -> tuple[int, int]:
    if inputs.get("image"):
        return (320, 256)
    return (272, 256) if inputs.get("aspect_ratio") == "custom" else (512, 512)
