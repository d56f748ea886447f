"""The service with `serve_config.yaml` on three logical GPUs. Only the model folders and the devices are replaced."""

from collections.abc import Iterator
from typing import Any

import pytest

from serve.launch.subprocess_service import ROOT, LocalService, local_service
from test_checkpoints.checkpoint import ensure
from test_checkpoints.networks import Geometry
from tests.cluster.client import SMALL, as_arguments, connect, predict, size_of, white_png
from tests.cluster.probe import Probe
from tests.images import data_uri
from tests.safety_checkpoints import FLAGS_NONE, make_classifier, make_concepts

pytestmark = pytest.mark.slow_cluster

PUBLIC_URL = "https://flux.example.com"
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
    assignments = as_arguments({**models, **devices})
    cluster_options = ("--host", "127.0.0.1", "--num-gpus", "3", "--num-cpus", "16")
    with local_service(
        str(ROOT / "serve_config.yaml"), *cluster_options, *assignments, environment=environment, start_timeout_s=600
    ) as running_service:
        yield running_service


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
def test_request_runs_in_the_expected_pool(service: LocalService, inputs: dict[str, Any], pool: str) -> None:
    images = {key: data_uri(white_png(320, 256)) for key in ("image", "mask") if inputs.get(key)}
    prediction = predict(service, **{**SMALL, "prompt": "a boat", **inputs, **images})
    assert prediction["metrics"]["pool"] == pool
    assert prediction["status"] == "succeeded", prediction["error"]
    assert prediction["output"][0].startswith(f"{PUBLIC_URL}/links/")
    with connect(service) as client:
        response = client.get(prediction["output"][0].removeprefix(PUBLIC_URL)).raise_for_status()
    assert response.headers["content-type"] == "image/png"
    assert size_of(response.content) == _expected_size(inputs)


def test_pools_have_the_configured_number_of_replicas(probe: Probe) -> None:
    assert probe.replicas("dev-bf16") == probe.replicas("schnell") == 1


def _expected_size(inputs: dict[str, Any]) -> tuple[int, int]:
    if inputs.get("image"):
        return (320, 256)
    return (272, 256) if inputs.get("aspect_ratio") == "custom" else (512, 512)
