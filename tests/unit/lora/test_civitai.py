"""What a reference to CivitAI means now, asked of a server that answers as CivitAI does."""

import hashlib
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from serve.errors import FetchFailed, InvalidLora
from serve.lora.provider import ResolvedFile
from serve.lora.reference import CivitaiFile
from tests.local_server import LocalServer
from tests.unit.lora.fake_providers import (
    CIVITAI_TOKEN,
    asked_with,
    civitai_file,
    civitai_version,
    locate,
    publish_on_civitai,
)

BODY = b"weights"
SHA256 = hashlib.sha256(BODY).hexdigest()
FILE = civitai_file(BODY)


def query_of(located: ResolvedFile) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(located.file.url).query).items()}


async def test_a_model_means_its_newest_version_and_is_not_taken_for_one(site: LocalServer, store: LocalServer) -> None:
    publish_on_civitai(site, store, 5, [civitai_version(72, FILE), civitai_version(71, FILE)], BODY)
    located = await locate(site, CivitaiFile(model=5))
    assert urlsplit(located.file.url).path == "/api/download/models/72"
    assert (located.file.sha256, located.revision) == (SHA256, SHA256)
    assert asked_with(site, "authorization") == [("/api/v1/models/5", f"Bearer {CIVITAI_TOKEN}")]


async def test_of_versions_for_several_models_the_newest_for_flux_is_meant(
    site: LocalServer, store: LocalServer
) -> None:
    versions = [
        civitai_version(73, FILE, base_model="SDXL 1.0"),
        civitai_version(72, FILE, base_model="Flux.1 S"),
        civitai_version(71, FILE),
    ]
    publish_on_civitai(site, store, 5, versions, BODY)
    assert urlsplit((await locate(site, CivitaiFile(model=5))).file.url).path == "/api/download/models/72"


async def test_a_version_is_asked_for_as_one(site: LocalServer, store: LocalServer) -> None:
    publish_on_civitai(site, store, 5, [civitai_version(72, FILE)], BODY)
    located = await locate(site, CivitaiFile(version=72))
    assert urlsplit(located.file.url).path == "/api/download/models/72"
    assert query_of(located) == {"type": "Model", "format": "SafeTensor", "size": "full", "fp": "fp16"}
    assert site.asked == ["/api/v1/model-versions/72"]


async def test_a_callers_own_token_takes_the_place_of_the_services(site: LocalServer, store: LocalServer) -> None:
    publish_on_civitai(site, store, 5, [civitai_version(72, FILE)], BODY)
    located = await locate(site, CivitaiFile(version=72, token="mine"))
    assert asked_with(site, "authorization") == [("/api/v1/model-versions/72", "Bearer mine")]
    assert "mine" not in located.file.url
    assert "mine" not in repr(located)


async def test_a_hash_that_is_not_told_is_not_checked(site: LocalServer, store: LocalServer) -> None:
    file = {**FILE, "hashes": {"AutoV2": "0"}}
    publish_on_civitai(site, store, 5, [civitai_version(72, file, base_model=None)], BODY)
    located = await locate(site, CivitaiFile(version=72))
    assert (located.file.sha256, located.revision) == (None, "72")


PICKLE = civitai_file(b"p", primary=True, metadata={"format": "PickleTensor"})
PRUNED = civitai_file(b"w", primary=False, metadata={"size": "pruned"}, type="Pruned Model")
WIDE = civitai_file(b"w", primary=None, metadata={"fp": "fp32"})
IMAGES = civitai_file(b"t", type="Training Data", primary=False, metadata={"format": "Other"})


@pytest.mark.parametrize(
    ("files", "choice", "query"),
    [
        ([IMAGES, FILE], (), {"type": "Model", "size": "full", "fp": "fp16"}),
        ([WIDE, PRUNED, FILE], (), {"type": "Model", "size": "full", "fp": "fp16"}),
        ([PICKLE, WIDE, PRUNED], (), {"type": "Model", "size": "full", "fp": "fp32"}),
        ([FILE, WIDE, PRUNED], (("size", "pruned"),), {"type": "Pruned Model", "size": "pruned", "fp": "fp16"}),
        ([FILE, WIDE, PRUNED], (("fp", "fp32"), ("size", "full")), {"type": "Model", "size": "full", "fp": "fp32"}),
    ],
)
async def test_of_several_files_the_primary_or_the_named_weights_are_meant(
    site: LocalServer,
    store: LocalServer,
    files: list[dict[str, Any]],
    choice: tuple[tuple[str, str], ...],
    query: dict[str, str],
) -> None:
    publish_on_civitai(site, store, 5, [civitai_version(72, *files)], BODY)
    located = await locate(site, CivitaiFile(version=72, choice=choice))
    assert query_of(located) == {"format": "SafeTensor", **query}


@pytest.mark.parametrize(
    ("version", "kind", "why"),
    [
        (civitai_version(72, FILE), "Checkpoint", "CivitAI lists it as Checkpoint, not as a LoRA"),
        (civitai_version(72, FILE, base_model="SDXL 1.0"), "LORA", "CivitAI lists it for SDXL 1.0, not for FLUX.1"),
        (civitai_version(72, FILE, base_model="Flux.2 D"), "LORA", "CivitAI lists it for Flux.2 D, not for FLUX.1"),
        (civitai_version(72), "LORA", "no such safetensors file on CivitAI"),
        (civitai_version(72, PICKLE, IMAGES), "LORA", "no such safetensors file on CivitAI"),
    ],
)
async def test_what_civitai_lists_as_something_else_is_not_downloaded(
    site: LocalServer, store: LocalServer, version: dict[str, Any], kind: str, why: str
) -> None:
    publish_on_civitai(site, store, 5, [version], BODY, kind)
    for reference in (CivitaiFile(model=5), CivitaiFile(version=72)):
        with pytest.raises(InvalidLora) as caught:
            await locate(site, reference)
        assert why in caught.value.why
    assert not any("download" in path for path in site.asked)


@pytest.mark.parametrize("kind", ["LoCon", "DoRA", ""])
@pytest.mark.parametrize("base_model", ["Other", None, "Flux.1 Krea"])
async def test_what_may_be_a_lora_for_flux_is_downloaded(
    site: LocalServer, store: LocalServer, kind: str, base_model: str | None
) -> None:
    publish_on_civitai(site, store, 5, [civitai_version(72, FILE, base_model=base_model)], BODY, kind)
    await locate(site, CivitaiFile(version=72))


@pytest.mark.parametrize(
    "tree",
    [[], {}, {"modelVersions": []}, {"modelVersions": [{"id": "x"}]}, {"modelVersions": [{"id": 1, "files": 5}]}],
)
async def test_an_answer_of_another_shape_is_a_failure(site: LocalServer, tree: object) -> None:
    site.answer("/api/v1/models/5", body=json.dumps(tree).encode())
    with pytest.raises(FetchFailed, match="CivitAI describes the model in an unknown way"):
        await locate(site, CivitaiFile(model=5))


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ("404 Not Found", "its server answered 404 Not Found; check how it is written"),
        ("401 Unauthorized", "the account of this service's CIVITAI_API_TOKEN may not read it"),
    ],
)
async def test_a_refusal_says_what_to_do(site: LocalServer, status: str, why: str) -> None:
    site.answer("/api/v1/models/5", status=status)
    with pytest.raises(FetchFailed) as caught:
        await locate(site, CivitaiFile(model=5))
    assert why in caught.value.why
