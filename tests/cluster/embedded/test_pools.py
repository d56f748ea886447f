"""Each pool generates the requested images, byte-identical whether or not other requests run at the same time."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serve.launch.subprocess_service import LocalService
from tests.cluster.client import SMALL, connect, contents, predict, size_of

POOLS: dict[str, dict[str, Any]] = {
    "dev-bf16": {},
    "dev-fp8": {"go_fast": True},
    "schnell": {"model": "schnell"},
}


@pytest.mark.parametrize("pool", POOLS)
def test_pool_returns_the_requested_size_and_the_same_bytes_per_seed(service: LocalService, pool: str) -> None:
    inputs = {**SMALL, **POOLS[pool], "prompt": "a red sailboat", "aspect_ratio": "3:2", "seed": 7}
    first, second = predict(service, **inputs), predict(service, **inputs)
    assert first["metrics"]["pool"] == pool
    assert size_of(contents(first)[0]) == (608, 416)
    assert contents(first) == contents(second)


@pytest.mark.parametrize("pool", POOLS)
def test_image_i_equals_the_single_image_of_seed_plus_i_alone_and_under_load(service: LocalService, pool: str) -> None:
    inputs = {**SMALL, **POOLS[pool], "prompt": "a lighthouse at night"}
    other_inputs = [
        {
            **SMALL,
            **POOLS[pool],
            "prompt": f"other request {number}",
            "aspect_ratio": ratio,
            "num_inference_steps": 3 + number,
        }
        for number, ratio in enumerate(("1:1", "16:9", "1:1", "2:3"))
    ]
    alone = contents(predict(service, **inputs, seed=40, num_outputs=4))
    with ThreadPoolExecutor(max_workers=len(other_inputs) + 1) as threads:
        others = [threads.submit(predict, service, **each) for each in other_inputs]
        under_load = contents(threads.submit(predict, service, **inputs, seed=40, num_outputs=4).result())
        for other in others:
            contents(other.result())
    singles = [contents(predict(service, **inputs, seed=40 + index))[0] for index in range(4)]
    assert len(set(alone)) == 4
    assert alone == singles
    assert under_load == singles


def test_handwriting_and_sketch_model_applies_its_two_loras(service: LocalService) -> None:
    inputs = {**SMALL, "prompt": "SKTCH sketch, a red sailboat", "seed": 7}

    def predict_with_model(**loras: str) -> dict[str, Any]:
        with connect(service) as client:
            path = "/v1/models/fofr/flux-handwriting-and-sketch/predictions"
            response = client.post(path, json={"input": inputs | loras}, headers={"Prefer": "wait=60"})
        response.raise_for_status()
        prediction: dict[str, Any] = response.json()
        return prediction

    with_loras, plain = predict_with_model(), predict_with_model(replicate_weights="", extra_lora="")
    assert [lora["rank"] for lora in with_loras["metrics"]["loras"]] == [8, 8]
    assert contents(plain) == contents(predict(service, **inputs))
    assert contents(with_loras) != contents(plain)
