"""LoRAs over HTTP: from every source, shared by all, healed when the cache dies, and never in another's picture."""

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
from tests.cluster.fake_lora_providers import World, world
from tests.cluster.probe import Probe
from tests.unit.lora.fake_providers import (
    PublishedFile,
    civitai_file,
    civitai_version,
    publish_on_civitai,
    publish_on_hub,
    publish_on_replicate,
)
from tests.unit.lora.test_archive import tar_of, zip_of

SMALLEST: dict[str, Any] = {
    "prompt": "a boat",
    "aspect_ratio": "custom",
    "width": 256,
    "height": 256,
    "num_inference_steps": 2,
    "seed": 5,
    "output_format": "png",
    "disable_safety_checker": True,
}
DEFAULT_MODEL = "{owner: me, name: inky, versions: [inky-1], default_inputs: {replicate_weights: fofr/ink}}"
PLAIN_MODEL = "{owner: me, name: plain, versions: [plain-1]}"
SETTINGS = (
    "custom_sizes_in_fp8=true",
    "pools.dev-bf16.max_in_flight=200",
    "pools.schnell.scaling.min_replicas=0",
    f"served_models=[{PLAIN_MODEL}, {DEFAULT_MODEL}]",
    "lora.aliases={ink: 's3://bucket/ink.safetensors'}",
    "lora.failure_ttl_s=0.1",
)


@pytest.fixture(scope="module")
def there(home: Path) -> Iterator[World]:
    """All hosts, with the LoRA of seed 1 at each."""
    with world() as made:
        ink = made.weights(1)
        publish_on_replicate(
            made.site, made.store, ReplicateModel("fofr", "ink"), tar_of(("out/lora.safetensors", ink))
        )
        publish_on_hub(made.site, made.store, "me/ink", {"sub/lora.safetensors": ink})
        publish_on_civitai(made.site, made.store, 7, [civitai_version(70, civitai_file(ink))], ink)
        PublishedFile(made.site, "/bucket/ink.safetensors", ink)
        PublishedFile(made.store, "/INK.Safetensors", ink)
        PublishedFile(made.store, "/ink.tar.gz", gzip.compress(tar_of(("lora.safetensors", ink))))
        PublishedFile(made.store, "/ink.zip", zip_of(("lora.safetensors", ink)))
        (home / "loras").mkdir()
        (home / "loras" / "ink.safetensors").write_bytes(ink)
        yield made


@pytest.fixture(scope="module")
def service(environment: dict[str, str], there: World, home: Path) -> Iterator[LocalService]:
    settings = (*SETTINGS, *there.settings, f"lora.folders=[{home / 'loras'}]")
    assignments = [part for setting in settings for part in ("--set", setting)]
    with local_service(*assignments, environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def drawn_with(service: LocalService) -> Callable[..., bytes]:
    """The picture of a prediction, as a PNG file."""

    def draw(**inputs: Any) -> bytes:
        return contents(predict(service, **SMALLEST | inputs))[0]

    return draw


@pytest.fixture(scope="module")
def inky(drawn_with: Callable[..., bytes]) -> bytes:
    """The picture with the LoRA of seed 1."""
    return drawn_with(replicate_weights="huggingface.co/me/ink/sub/lora.safetensors")


def text_of(source: str, there: World, home: Path) -> str:
    store = f"http://127.0.0.1:{there.store.port}"
    enclosed = base64.b64encode(there.weights(1)).decode()
    return {
        "replicate": "fofr/ink",
        "hub": "https://huggingface.co/me/ink/tree/main/sub",
        "civitai": "civitai.com/models/7",
        "url": f"{store}/INK.Safetensors?signature=1",
        "tar": f"{store}/ink.tar.gz",
        "zip": f"{store}/ink.zip",
        "short name": " ink ",
        "file": f"{home}/loras/ink.safetensors",
        "data": f"data:application/octet-stream;base64,{enclosed}",
    }[source]


@pytest.mark.parametrize("source", ["replicate", "hub", "civitai", "url", "tar", "zip", "short name", "file", "data"])
def test_the_same_lora_draws_the_same_picture_wherever_it_lies(
    service: LocalService, there: World, home: Path, inky: bytes, source: str
) -> None:
    prediction = predict(service, **SMALLEST, replicate_weights=text_of(source, there, home))
    assert contents(prediction)[0] == inky
    assert prediction["metrics"]["loras"][0]["rank"] == 4
    assert "LoRA " in prediction["logs"]


def test_a_lora_changes_the_picture_and_at_scale_0_does_not(drawn_with: Callable[..., bytes], inky: bytes) -> None:
    plain = drawn_with()
    assert inky != plain
    assert drawn_with(replicate_weights="fofr/ink", lora_scale=0) == plain
    assert drawn_with(extra_lora="fofr/ink") == inky
    assert drawn_with(replicate_weights="fofr/ink", lora_scale=0.5, extra_lora="ink", extra_lora_scale=0.5) == inky


def test_the_weights_of_a_served_model_are_its_default(drawn_with: Callable[..., bytes], service: LocalService) -> None:
    def draw(**inputs: Any) -> bytes:
        body = {"version": "me/inky", "input": SMALLEST | inputs}
        with connect(service) as client:
            answer = client.post("/v1/predictions", json=body, headers={"Prefer": "wait=60"})
        return contents(answer.raise_for_status().json())[0]

    assert draw() == drawn_with(replicate_weights="fofr/ink")
    assert draw(replicate_weights="") == drawn_with()


def test_a_hundred_who_ask_for_a_cold_lora_cause_one_download(service: LocalService, there: World) -> None:
    file = PublishedFile(there.store, "/cold.safetensors", there.weights(2))
    inputs = {**SMALLEST, "num_inference_steps": 1, "replicate_weights": file.url}
    with ThreadPoolExecutor(100) as callers:
        asked = list(callers.map(lambda seed: create(service, **inputs | {"seed": seed}), range(100)))
    ends = [finish(service, prediction["id"]) for prediction in asked]
    assert [end["error"] for end in ends if end["status"] != "succeeded"] == []
    assert file.starts == [0]
    assert [end["metrics"]["loras"][0]["origin"] for end in ends].count("download") == 1


def test_a_cache_that_is_killed_while_it_downloads_costs_no_prediction(
    service: LocalService, there: World, probe: Probe
) -> None:
    content, going = there.weights(3), asyncio.Event()

    async def slow(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content[:1000])
        await going.wait()
        writer.write(content[1000:])

    url = there.store.behave("/slow.safetensors", slow)
    asked = [create(service, **SMALLEST | {"seed": seed}, replicate_weights=url) for seed in range(4)]
    until(lambda: there.store.asked.count("/slow.safetensors"), lambda downloads: downloads == 1)
    assert probe.kill_lora_cache()
    there.loop.call_soon_threadsafe(going.set)
    assert [finish(service, prediction["id"])["error"] for prediction in asked] == [None] * 4
    assert there.store.asked.count("/slow.safetensors") == 2


def test_after_a_cache_was_killed_everything_it_had_is_still_there(
    service: LocalService, there: World, probe: Probe, inky: bytes
) -> None:
    before = len(there.store.asked)
    assert probe.kill_lora_cache()
    prediction = predict(service, **SMALLEST, replicate_weights="huggingface.co/me/ink/sub/lora.safetensors")
    assert contents(prediction)[0] == inky
    assert prediction["metrics"]["loras"][0]["origin"] == "disk"
    assert len(there.store.asked) == before


def test_a_cache_that_nobody_asks_any_more_ends_itself(probe: Probe) -> None:
    before = until(probe.lora_caches, lambda caches: caches == 1)
    probe.make_forgetful_lora_cache()
    until(probe.lora_caches, lambda caches: caches == before, timeout_s=30)


FAULTS: dict[str, tuple[Callable[[World], str], str]] = {
    "not there": (lambda there: there.store.answer("/none.safetensors", "404 Not Found"), "404"),
    "a page": (
        lambda there: there.store.answer("/page.safetensors", body=b"<!doctype html><html></html>"),
        "a web page",
    ),
    "truncated": (
        lambda there: there.store.answer("/short.safetensors", body=there.weights(1)[:5000]),
        "shorter|damaged|truncated|cut|end",
    ),
    "a rank over the limit": (
        lambda there: PublishedFile(there.store, "/r.safetensors", there.weights(1, 300)).url,
        "rank",
    ),
    "private": (
        lambda there: there.store.answer("/away.safetensors", "302 Found", Location="http://10.0.0.1/a.safetensors"),
        "public|private|allowed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_lora_fails_its_prediction_alone(
    service: LocalService, there: World, inky: bytes, fault: str, drawn_with: Callable[..., bytes]
) -> None:
    make_text, why = FAULTS[fault]
    prediction = predict(service, **SMALLEST, replicate_weights=make_text(there))
    assert prediction["status"] == "failed"
    assert re.search(why, prediction["error"]), prediction["error"]
    assert "Traceback" not in prediction["error"] + prediction["logs"]
    assert drawn_with(replicate_weights="fofr/ink") == inky


def test_plain_pictures_stay_the_same_between_a_hundred_requests_with_loras(
    service: LocalService, there: World, drawn_with: Callable[..., bytes]
) -> None:
    urls = [PublishedFile(there.store, f"/{seed}.safetensors", there.weights(seed)).url for seed in range(10, 15)]
    urls.append(there.store.answer("/none.safetensors", "404 Not Found"))
    chance = random.Random(0)

    def one(number: int) -> tuple[bool, bytes | None]:
        fast = number % 2 == 0
        if number % 10 == 0:
            return fast, drawn_with(go_fast=fast)
        loras = {
            "replicate_weights": chance.choice(urls),
            "lora_scale": chance.uniform(-1, 3),
            "extra_lora": chance.choice([*urls, ""]),
            "extra_lora_scale": chance.uniform(-1, 3),
        }
        predict(service, **SMALLEST, **loras, go_fast=fast)
        return fast, None

    plain = {fast: drawn_with(go_fast=fast) for fast in (False, True)}
    assert plain[False] != plain[True]
    with ThreadPoolExecutor(8) as callers:
        for fast, picture in callers.map(one, range(1, 112)):
            assert picture in (None, plain[fast])
    assert {fast: drawn_with(go_fast=fast) for fast in (False, True)} == plain


def test_loras_beside_each_other_draw_what_each_draws_alone(
    service: LocalService, drawn_with: Callable[..., bytes], there: World
) -> None:
    urls = [PublishedFile(there.store, f"/{seed}.safetensors", there.weights(seed)).url for seed in range(20, 23)]
    inputs = [
        {"replicate_weights": url, "lora_scale": scale, "num_inference_steps": 6, "go_fast": fast}
        for url in urls
        for scale in (0.5, 1.0)
        for fast in (False, True)
    ]
    alone = [drawn_with(**each) for each in inputs]
    asked = [create(service, **SMALLEST | each) for each in inputs]
    ends = [finish(service, prediction["id"]) for prediction in asked]
    assert [contents(end)[0] for end in ends] == alone
    assert max(end["metrics"]["mean_batch"] for end in ends) > 1
    assert len(set(alone)) == len(alone)
