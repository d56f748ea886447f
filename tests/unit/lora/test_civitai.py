"""Resolves CivitAI references against a fake CivitAI."""

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
    civitai_file,
    civitai_version,
    publish_on_civitai,
    requests_with_header,
    resolve,
)

BODY = b"weights"
SHA256 = hashlib.sha256(BODY).hexdigest()
FILE = civitai_file(BODY)


def path_of(resolved: ResolvedFile) -> str:
    return urlsplit(resolved.file.url).path


def query_of(resolved: ResolvedFile) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(resolved.file.url).query).items()}


async def test_model_resolves_to_its_newest_version(provider: LocalServer, file_host: LocalServer) -> None:
    publish_on_civitai(provider, file_host, 5, [civitai_version(72, FILE), civitai_version(71, FILE)], BODY)
    resolved = await resolve(provider, CivitaiFile(model=5))
    assert path_of(resolved) == "/api/download/models/72"
    assert (resolved.file.sha256, resolved.revision) == (SHA256, SHA256)
    assert requests_with_header(provider, "authorization") == [("/api/v1/models/5", f"Bearer {CIVITAI_TOKEN}")]


async def test_model_with_several_base_models_resolves_to_the_newest_flux_version(
    provider: LocalServer, file_host: LocalServer
) -> None:
    versions = [
        civitai_version(73, FILE, base_model="SDXL 1.0"),
        civitai_version(72, FILE, base_model="Flux.1 S"),
        civitai_version(71, FILE),
    ]
    publish_on_civitai(provider, file_host, 5, versions, BODY)
    assert path_of(await resolve(provider, CivitaiFile(model=5))) == "/api/download/models/72"


async def test_version_is_requested_directly(provider: LocalServer, file_host: LocalServer) -> None:
    publish_on_civitai(provider, file_host, 5, [civitai_version(72, FILE)], BODY)
    resolved = await resolve(provider, CivitaiFile(version=72))
    assert path_of(resolved) == "/api/download/models/72"
    assert query_of(resolved) == {"type": "Model", "format": "SafeTensor", "size": "full", "fp": "fp16"}
    assert provider.requested_paths == ["/api/v1/model-versions/72"]


async def test_token_of_the_caller_replaces_the_token_of_the_service(
    provider: LocalServer, file_host: LocalServer
) -> None:
    publish_on_civitai(provider, file_host, 5, [civitai_version(72, FILE)], BODY)
    resolved = await resolve(provider, CivitaiFile(version=72, token="mine"))
    assert requests_with_header(provider, "authorization") == [("/api/v1/model-versions/72", "Bearer mine")]
    assert "mine" not in resolved.file.url
    assert "mine" not in repr(resolved)


async def test_version_without_checksum_is_identified_by_its_number(
    provider: LocalServer, file_host: LocalServer
) -> None:
    file = {**FILE, "hashes": {"AutoV2": "0"}}
    publish_on_civitai(provider, file_host, 5, [civitai_version(72, file, base_model=None)], BODY)
    resolved = await resolve(provider, CivitaiFile(version=72))
    assert (resolved.file.sha256, resolved.revision) == (None, "72")


PICKLE = civitai_file(b"p", primary=True, metadata={"format": "PickleTensor"})
PRUNED = civitai_file(b"w", primary=False, metadata={"size": "pruned"}, type="Pruned Model")
FP32 = civitai_file(b"w", primary=None, metadata={"fp": "fp32"})
TRAINING_IMAGES = civitai_file(b"t", type="Training Data", primary=False, metadata={"format": "Other"})


@pytest.mark.parametrize(
    ("files", "filters", "query"),
    [
        ([TRAINING_IMAGES, FILE], (), {"type": "Model", "size": "full", "fp": "fp16"}),
        ([FP32, PRUNED, FILE], (), {"type": "Model", "size": "full", "fp": "fp16"}),
        ([PICKLE, FP32, PRUNED], (), {"type": "Model", "size": "full", "fp": "fp32"}),
        ([FILE, FP32, PRUNED], (("size", "pruned"),), {"type": "Pruned Model", "size": "pruned", "fp": "fp16"}),
        ([FILE, FP32, PRUNED], (("fp", "fp32"), ("size", "full")), {"type": "Model", "size": "full", "fp": "fp32"}),
    ],
)
async def test_primary_or_matching_weights_are_selected(
    provider: LocalServer,
    file_host: LocalServer,
    files: list[dict[str, Any]],
    filters: tuple[tuple[str, str], ...],
    query: dict[str, str],
) -> None:
    publish_on_civitai(provider, file_host, 5, [civitai_version(72, *files)], BODY)
    resolved = await resolve(provider, CivitaiFile(version=72, filters=filters))
    assert query_of(resolved) == {"format": "SafeTensor", **query}


@pytest.mark.parametrize(
    ("version", "model_type", "word"),
    [
        (civitai_version(72, FILE), "Checkpoint", "Checkpoint"),
        (civitai_version(72, FILE, base_model="SDXL 1.0"), "LORA", "SDXL 1.0"),
        (civitai_version(72, FILE, base_model="Flux.2 D"), "LORA", "Flux.2 D"),
        (civitai_version(72), "LORA", "safetensors"),
        (civitai_version(72, PICKLE, TRAINING_IMAGES), "LORA", "safetensors"),
    ],
)
async def test_models_that_are_no_flux_loras_are_rejected_without_a_download(
    provider: LocalServer, file_host: LocalServer, version: dict[str, Any], model_type: str, word: str
) -> None:
    publish_on_civitai(provider, file_host, 5, [version], BODY, model_type)
    for reference in (CivitaiFile(model=5), CivitaiFile(version=72)):
        with pytest.raises(InvalidLora) as caught:
            await resolve(provider, reference)
        assert word in caught.value.why
    assert not any("download" in path for path in provider.requested_paths)


@pytest.mark.parametrize("model_type", ["LoCon", "DoRA", ""])
@pytest.mark.parametrize("base_model", ["Other", None, "Flux.1 Krea"])
async def test_possible_flux_loras_are_accepted(
    provider: LocalServer, file_host: LocalServer, model_type: str, base_model: str | None
) -> None:
    version = civitai_version(72, FILE, base_model=base_model)
    publish_on_civitai(provider, file_host, 5, [version], BODY, model_type)
    await resolve(provider, CivitaiFile(version=72))


@pytest.mark.parametrize(
    "response",
    [[], {}, {"modelVersions": []}, {"modelVersions": [{"id": "x"}]}, {"modelVersions": [{"id": 1, "files": 5}]}],
)
async def test_unexpected_response_is_an_error(provider: LocalServer, response: object) -> None:
    provider.respond("/api/v1/models/5", body=json.dumps(response).encode())
    with pytest.raises(FetchFailed, match=r"CivitAI.*unexpected response"):
        await resolve(provider, CivitaiFile(model=5))


@pytest.mark.parametrize(
    ("status", "word"),
    [("404 Not Found", "404 Not Found"), ("401 Unauthorized", "CIVITAI_API_TOKEN")],
)
async def test_error_response_is_reported_with_a_hint(provider: LocalServer, status: str, word: str) -> None:
    provider.respond("/api/v1/models/5", status=status)
    with pytest.raises(FetchFailed) as caught:
        await resolve(provider, CivitaiFile(model=5))
    assert word in caught.value.why


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_rejected_token_of_the_caller_is_named_instead_of_the_services_own(
    provider: LocalServer, status: str
) -> None:
    provider.respond("/api/v1/model-versions/7", status=status)
    with pytest.raises(FetchFailed) as caught:
        await resolve(provider, CivitaiFile(version=7, token="mine"))
    assert "token in the reference" in caught.value.why
    assert "CIVITAI_API_TOKEN" not in caught.value.why
    assert "mine" not in str(caught.value)
