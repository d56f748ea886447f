"""LoRAs over HTTP: every kind of reference, shared downloads, cache crashes, errors and batches."""

import asyncio
import base64
import gzip
import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serve.launch.subprocess_service import LocalService, local_service
from serve.lora.reference import ReplicateModel
from tests.cluster.client import connect, contents, create, finish, predict, until
from tests.cluster.fake_lora_providers import FakeProviders, run_fake_providers
from tests.cluster.probe import Probe
from tests.cluster.processes import processes
from tests.unit.lora.archives import tar_of, zip_of
from tests.unit.lora.fake_providers import (
    PublishedFile,
    civitai_file,
    civitai_version,
    publish_on_civitai,
    publish_on_hub,
    publish_on_replicate,
)

INPUTS: dict[str, Any] = {
    "prompt": "a boat",
    "aspect_ratio": "custom",
    "width": 256,
    "height": 256,
    "num_inference_steps": 2,
    "seed": 5,
    "output_format": "png",
    "disable_safety_checker": True,
}
"""The fastest inputs that the API allows."""
MODEL_WITH_LORA = "{owner: me, name: styled, versions: [styled-1], default_inputs: {replicate_weights: fofr/style}}"
MODEL_WITHOUT_LORA = "{owner: me, name: plain, versions: [plain-1]}"
SETTINGS = (
    "custom_sizes_in_fp8=true",
    "pools.dev-bf16.max_in_flight=200",
    "pools.dev-bf16.scheduling_policy=turns",  # batches form on any machine
    "pools.dev-fp8.scheduling_policy=turns",
    "pools.schnell.scaling.min_replicas=0",
    f"served_models=[{MODEL_WITHOUT_LORA}, {MODEL_WITH_LORA}]",
    "lora.aliases={style: 's3://bucket/style.safetensors'}",
    "lora.failure_ttl_s=0.1",
)
CACHE_TITLE = "ray::LoraCacheActor"
Generate = Callable[..., bytes]
"""Returns the PNG file of a prediction with these inputs in addition to `INPUTS`."""


@pytest.fixture(scope="module")
def providers(home_folder: Path) -> Iterator[FakeProviders]:
    """Fake providers. Each of them and a local folder have the LoRA of seed 1."""
    with run_fake_providers() as running:
        provider, file_host, weights = running.provider, running.file_host, running.make_weights(1)
        archive = tar_of(("out/lora.safetensors", weights))
        publish_on_replicate(provider, file_host, ReplicateModel("fofr", "style"), archive)
        publish_on_hub(provider, file_host, "me/style", {"sub/lora.safetensors": weights})
        publish_on_civitai(provider, file_host, 7, [civitai_version(70, civitai_file(weights))], weights)
        PublishedFile(provider, "/bucket/style.safetensors", weights)
        PublishedFile(file_host, "/STYLE.Safetensors", weights)
        PublishedFile(file_host, "/style.tar.gz", gzip.compress(tar_of(("lora.safetensors", weights))))
        PublishedFile(file_host, "/style.zip", zip_of(("lora.safetensors", weights)))
        (home_folder / "loras").mkdir()
        (home_folder / "loras" / "style.safetensors").write_bytes(weights)
        yield running


@pytest.fixture(scope="module")
def service(environment: dict[str, str], providers: FakeProviders, home_folder: Path) -> Iterator[LocalService]:
    settings = (*SETTINGS, *providers.settings, f"lora.folders=[{home_folder / 'loras'}]")
    arguments = [part for setting in settings for part in ("--set", setting)]
    with local_service(*arguments, environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def generate(service: LocalService) -> Generate:
    def generate_image(**inputs: Any) -> bytes:
        return contents(predict(service, **INPUTS | inputs))[0]

    return generate_image


@pytest.fixture(scope="module")
def styled_image(generate: Generate) -> bytes:
    """The image with the LoRA of seed 1."""
    return generate(replicate_weights="huggingface.co/me/style/sub/lora.safetensors")


def reference_to(source: str, providers: FakeProviders, home_folder: Path) -> str:
    """A reference to the LoRA of seed 1."""
    base_url = f"http://127.0.0.1:{providers.file_host.port}"
    inline = base64.b64encode(providers.make_weights(1)).decode()
    return {
        "Replicate": "fofr/style",
        "Hugging Face": "https://huggingface.co/me/style/tree/main/sub",
        "CivitAI": "civitai.com/models/7",
        "URL": f"{base_url}/STYLE.Safetensors?signature=1",
        "tar.gz": f"{base_url}/style.tar.gz",
        "zip": f"{base_url}/style.zip",
        "alias": " style ",
        "local file": f"{home_folder}/loras/style.safetensors",
        "data URI": f"data:application/octet-stream;base64,{inline}",
    }[source]


@pytest.mark.parametrize(
    "source", ["Replicate", "Hugging Face", "CivitAI", "URL", "tar.gz", "zip", "alias", "local file", "data URI"]
)
def test_lora_gives_the_same_image_from_every_source(
    service: LocalService, providers: FakeProviders, home_folder: Path, styled_image: bytes, source: str
) -> None:
    prediction = predict(service, **INPUTS, replicate_weights=reference_to(source, providers, home_folder))
    assert contents(prediction)[0] == styled_image
    assert prediction["metrics"]["loras"][0]["rank"] == 4
    assert "LoRA " in prediction["logs"]


def test_lora_changes_the_image_unless_its_scale_is_0(generate: Generate, styled_image: bytes) -> None:
    plain_image = generate()
    assert styled_image != plain_image
    assert generate(replicate_weights="fofr/style", lora_scale=0) == plain_image
    assert generate(extra_lora="fofr/style") == styled_image
    half_each = {"lora_scale": 0.5, "extra_lora_scale": 0.5}
    assert generate(replicate_weights="fofr/style", extra_lora="style", **half_each) == styled_image


def test_served_model_has_a_default_lora(generate: Generate, service: LocalService) -> None:
    def generate_with_model(**inputs: Any) -> bytes:
        body = {"version": "me/styled", "input": INPUTS | inputs}
        with connect(service) as client:
            response = client.post("/v1/predictions", json=body, headers={"Prefer": "wait=60"})
        return contents(response.raise_for_status().json())[0]

    assert generate_with_model() == generate(replicate_weights="fofr/style")
    assert generate_with_model(replicate_weights="") == generate()


@pytest.mark.slow_cluster
def test_100_concurrent_requests_share_one_download(service: LocalService, providers: FakeProviders) -> None:
    file = PublishedFile(providers.file_host, "/shared.safetensors", providers.make_weights(2))
    inputs = {**INPUTS, "num_inference_steps": 1, "replicate_weights": file.url}
    with ThreadPoolExecutor(100) as threads:
        created = list(threads.map(lambda seed: create(service, **inputs | {"seed": seed}), range(100)))
    finished = [finish(service, prediction["id"]) for prediction in created]
    assert [prediction["error"] for prediction in finished if prediction["status"] != "succeeded"] == []
    assert file.starts == [0]
    origins = [prediction["metrics"]["loras"][0]["origin"] for prediction in finished]
    assert origins.count("download") == 1


def test_predictions_survive_a_cache_crash_during_a_download(
    service: LocalService, providers: FakeProviders, probe: Probe
) -> None:
    content, may_continue = providers.make_weights(3), asyncio.Event()

    async def respond_slowly(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content[:1000])
        await may_continue.wait()
        writer.write(content[1000:])

    file_host = providers.file_host
    url = file_host.respond_with("/slow.safetensors", respond_slowly)
    created = [create(service, **INPUTS | {"seed": seed}, replicate_weights=url) for seed in range(4)]
    until(lambda: file_host.requested_paths.count("/slow.safetensors"), lambda downloads: downloads == 1)
    assert probe.kill_lora_caches()
    providers.loop.call_soon_threadsafe(may_continue.set)
    assert [finish(service, prediction["id"])["error"] for prediction in created] == [None] * 4
    assert file_host.requested_paths.count("/slow.safetensors") == 2


@pytest.mark.slow_cluster
def test_predictions_survive_a_hung_cache(service: LocalService, generate: Generate, styled_image: bytes) -> None:
    (cache,) = processes(service, CACHE_TITLE)
    cache.suspend()
    prediction = predict(service, **INPUTS, replicate_weights="huggingface.co/me/style/sub/lora.safetensors")
    assert contents(prediction)[0] == styled_image
    cache.wait(60)
    (successor,) = processes(service, CACHE_TITLE)
    assert successor.pid != cache.pid


def test_loras_are_read_from_disk_after_a_cache_crash(
    service: LocalService, providers: FakeProviders, probe: Probe, styled_image: bytes
) -> None:
    requests_before = len(providers.file_host.requested_paths)
    assert probe.kill_lora_caches()
    prediction = predict(service, **INPUTS, replicate_weights="huggingface.co/me/style/sub/lora.safetensors")
    assert contents(prediction)[0] == styled_image
    assert prediction["metrics"]["loras"][0]["origin"] == "disk"
    assert len(providers.file_host.requested_paths) == requests_before


def test_idle_cache_exits(probe: Probe) -> None:
    caches_before = until(probe.lora_caches, lambda caches: caches == 1)
    probe.start_idle_lora_cache()
    until(probe.lora_caches, lambda caches: caches == caches_before, timeout_s=30)


INVALID_LORAS: dict[str, tuple[Callable[[FakeProviders], str], str]] = {
    "missing": (lambda providers: providers.file_host.respond("/missing.safetensors", "404 Not Found"), "404"),
    "web page": (
        lambda providers: providers.file_host.respond("/page.safetensors", body=b"<!doctype html><html></html>"),
        "web page",
    ),
    "truncated": (
        lambda providers: providers.file_host.respond("/short.safetensors", body=providers.make_weights(1)[:5000]),
        "truncated",
    ),
    "rank above the limit": (
        lambda providers: PublishedFile(providers.file_host, "/r.safetensors", providers.make_weights(1, 300)).url,
        "rank",
    ),
    "private address": (
        lambda providers: providers.file_host.respond(
            "/away.safetensors", "302 Found", Location="http://10.0.0.1/a.safetensors"
        ),
        "allowed_hosts",
    ),
}


@pytest.mark.parametrize("case", INVALID_LORAS)
def test_invalid_lora_fails_its_prediction_only(
    service: LocalService, providers: FakeProviders, styled_image: bytes, case: str, generate: Generate
) -> None:
    publish, word = INVALID_LORAS[case]
    prediction = predict(service, **INPUTS, replicate_weights=publish(providers))
    assert prediction["status"] == "failed"
    assert re.search(word, prediction["error"]), prediction["error"]
    assert "Traceback" not in prediction["error"] + prediction["logs"]
    assert generate(replicate_weights="fofr/style") == styled_image


@pytest.mark.slow_cluster
def test_images_without_lora_are_unchanged_among_100_requests_with_loras(
    service: LocalService, providers: FakeProviders, generate: Generate
) -> None:
    file_host = providers.file_host
    urls = [
        PublishedFile(file_host, f"/{seed}.safetensors", providers.make_weights(seed)).url for seed in range(10, 15)
    ]
    urls.append(file_host.respond("/missing.safetensors", "404 Not Found"))
    rng = random.Random(0)

    def run_request(number: int) -> tuple[bool, bytes | None]:
        """Returns `go_fast`, and the image if the request has no LoRAs, as every tenth request."""
        go_fast = number % 2 == 0
        if number % 10 == 0:
            return go_fast, generate(go_fast=go_fast)
        loras = {
            "replicate_weights": rng.choice(urls),
            "lora_scale": rng.uniform(-1, 3),
            "extra_lora": rng.choice([*urls, ""]),
            "extra_lora_scale": rng.uniform(-1, 3),
        }
        predict(service, **INPUTS, **loras, go_fast=go_fast)
        return go_fast, None

    plain_images = {go_fast: generate(go_fast=go_fast) for go_fast in (False, True)}
    assert plain_images[False] != plain_images[True]
    with ThreadPoolExecutor(8) as threads:
        for go_fast, image in threads.map(run_request, range(1, 112)):
            assert image in (None, plain_images[go_fast])
    assert {go_fast: generate(go_fast=go_fast) for go_fast in (False, True)} == plain_images


def test_batched_loras_give_the_same_images_as_alone(
    service: LocalService, generate: Generate, providers: FakeProviders
) -> None:
    urls = [
        PublishedFile(providers.file_host, f"/{seed}.safetensors", providers.make_weights(seed)).url
        for seed in range(20, 23)
    ]
    all_inputs = [
        {"replicate_weights": url, "lora_scale": scale, "num_inference_steps": 6, "go_fast": go_fast}
        for url in urls
        for scale in (0.5, 1.0)
        for go_fast in (False, True)
    ]
    images_alone = [generate(**inputs) for inputs in all_inputs]
    created = [create(service, **INPUTS | inputs) for inputs in all_inputs]
    finished = [finish(service, prediction["id"]) for prediction in created]
    assert [contents(prediction)[0] for prediction in finished] == images_alone
    assert max(prediction["metrics"]["mean_batch"] for prediction in finished) > 1
    assert len(set(images_alone)) == len(images_alone)
