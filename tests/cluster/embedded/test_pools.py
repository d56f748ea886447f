"""Each pool draws what was asked, and the same request gives the same bytes whoever runs beside it."""

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
def test_each_pool_draws_the_asked_size_and_the_same_bytes_for_the_same_seed(service: LocalService, pool: str) -> None:
    asked = {**SMALL, **POOLS[pool], "prompt": "a red sailboat", "aspect_ratio": "3:2", "seed": 7}
    first, second = predict(service, **asked), predict(service, **asked)
    assert first["metrics"]["pool"] == pool
    assert size_of(contents(first)[0]) == (608, 416)
    assert contents(first) == contents(second)


@pytest.mark.parametrize("pool", POOLS)
def test_image_i_equals_the_single_image_of_seed_plus_i_alone_and_in_company(service: LocalService, pool: str) -> None:
    asked = {**SMALL, **POOLS[pool], "prompt": "a lighthouse at night"}
    company = [
        {
            **SMALL,
            **POOLS[pool],
            "prompt": f"stranger {number}",
            "aspect_ratio": ratio,
            "num_inference_steps": 3 + number,
        }
        for number, ratio in enumerate(("1:1", "16:9", "1:1", "2:3"))
    ]
    alone = contents(predict(service, **asked, seed=40, num_outputs=4))
    with ThreadPoolExecutor(max_workers=len(company) + 1) as threads:
        strangers = [threads.submit(predict, service, **inputs) for inputs in company]
        accompanied = contents(threads.submit(predict, service, **asked, seed=40, num_outputs=4).result())
        for stranger in strangers:
            contents(stranger.result())
    singles = [contents(predict(service, **asked, seed=40 + index))[0] for index in range(4)]
    assert len(set(alone)) == 4
    assert alone == singles
    assert accompanied == singles


def test_the_handwriting_and_sketch_model_draws_with_its_two_loras(service: LocalService) -> None:
    asked = {**SMALL, "prompt": "SKTCH sketch, a red sailboat", "seed": 7}

    def draw(**inputs: str) -> dict[str, Any]:
        with connect(service) as client:
            path = "/v1/models/fofr/flux-handwriting-and-sketch/predictions"
            answer = client.post(path, json={"input": asked | inputs}, headers={"Prefer": "wait=60"})
        answer.raise_for_status()
        prediction: dict[str, Any] = answer.json()
        return prediction

    styled, plain = draw(), draw(replicate_weights="", extra_lora="")
    assert [lora["rank"] for lora in styled["metrics"]["loras"]] == [8, 8]
    assert contents(plain) == contents(predict(service, **asked))
    assert contents(styled) != contents(plain)
