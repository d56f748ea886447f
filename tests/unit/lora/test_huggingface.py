"""Resolves Hugging Face references against a fake Hub."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pytest

from serve.errors import FetchFailed, InvalidLora
from serve.lora.provider import ResolvedFile
from serve.lora.reference import HubFile
from tests.local_server import LocalServer
from tests.unit.lora.fake_providers import COMMIT, HUB_TOKEN, publish_on_hub, requests_with_header, resolve

BODY = b"weights"
SHA256 = hashlib.sha256(BODY).hexdigest()
REPOSITORY = "multimodalart/flux-tarot-v1"


def path_of(resolved: ResolvedFile, hub: LocalServer) -> str:
    return resolved.file.url.removeprefix(f"http://127.0.0.1:{hub.port}")


async def test_only_weights_file_is_resolved_at_its_commit(provider: LocalServer, file_host: LocalServer) -> None:
    files = {"README.md": b"#", "tarot v1.safetensors": BODY, "a.png": b"p"}
    publish_on_hub(provider, file_host, REPOSITORY, files)
    resolved = await resolve(provider, HubFile(REPOSITORY))
    assert path_of(resolved, provider) == f"/{REPOSITORY}/resolve/{COMMIT}/tarot%20v1.safetensors"
    assert (resolved.file.sha256, resolved.revision, resolved.config) == (SHA256, SHA256, None)
    assert requests_with_header(provider, "authorization") == [
        (f"/api/models/{REPOSITORY}/revision/main?blobs=true", f"Bearer {HUB_TOKEN}")
    ]


async def test_slashes_in_a_revision_are_escaped(provider: LocalServer, file_host: LocalServer) -> None:
    publish_on_hub(provider, file_host, "o/r", {"x.safetensors": BODY}, revision="refs%2Fpr%2F3")
    resolved = await resolve(provider, HubFile("o/r", "refs/pr/3", "x.safetensors"))
    assert path_of(resolved, provider) == f"/o/r/resolve/{COMMIT}/x.safetensors"


async def test_revision_of_a_file_outside_lfs_is_the_commit(provider: LocalServer) -> None:
    response = {"sha": COMMIT, "siblings": [{"rfilename": "x.safetensors"}], "unknown": "field"}
    provider.respond("/api/models/o/r/revision/main", body=json.dumps(response).encode())
    resolved = await resolve(provider, HubFile("o/r"))
    assert (resolved.file.sha256, resolved.revision) == (None, COMMIT)


@pytest.mark.parametrize(
    ("path", "names", "selected"),
    [
        ("", ["x.safetensors"], "x.safetensors"),
        ("", ["X.SafeTensors", "x.json"], "X.SafeTensors"),
        ("", ["deep/er/x.safetensors"], "deep/er/x.safetensors"),
        ("", ["x.safetensors", "checkpoints/500.safetensors", "checkpoints/1000.safetensors"], "x.safetensors"),
        ("", ["pytorch_lora_weights.safetensors", "other.safetensors"], "pytorch_lora_weights.safetensors"),
        ("", ["adapter_model.safetensors", "other.safetensors"], "adapter_model.safetensors"),
        ("", ["trained_model.tar", "README.md"], "trained_model.tar"),
        ("", ["lora.zip", "x.safetensors"], "x.safetensors"),
        ("b.safetensors", ["a.safetensors", "b.safetensors"], "b.safetensors"),
        ("deep/b.safetensors", ["a.safetensors", "deep/b.safetensors"], "deep/b.safetensors"),
        ("lora.zip", ["lora.zip", "x.safetensors"], "lora.zip"),
        ("deep", ["a.safetensors", "deep/b.safetensors", "deeper/c.safetensors"], "deep/b.safetensors"),
        ("deep/", ["a.safetensors", "deep/b.safetensors", "deep/old/c.safetensors"], "deep/b.safetensors"),
    ],
)
async def test_file_is_selected_from_the_repository(
    provider: LocalServer, file_host: LocalServer, path: str, names: list[str], selected: str
) -> None:
    publish_on_hub(provider, file_host, "o/r", dict.fromkeys(names, BODY))
    resolved = await resolve(provider, HubFile("o/r", "main", path))
    assert path_of(resolved, provider) == f"/o/r/resolve/{COMMIT}/{selected}"


@pytest.mark.parametrize(
    ("path", "names", "words"),
    [
        ("", [], ("no .safetensors file", "revision main")),
        ("", ["README.md", "model.bin"], ("no .safetensors file", "revision main")),
        ("", ["b.safetensors", "a.safetensors"], ("several", "a.safetensors, b.safetensors")),
        ("", ["b.safetensors", "a.safetensors", "c.zip"], ("several", "a.safetensors, b.safetensors")),
        ("", ["a.tar", "b.zip"], ("several", "a.tar, b.zip")),
        ("", [f"{number}.safetensors" for number in range(10)], ("7.safetensors and 2 more",)),
        ("c.safetensors", ["a.safetensors"], ("no c.safetensors", "revision main")),
        ("README.md", ["a.safetensors"], ("no README.md", "revision main")),
        ("dee", ["deep/a.safetensors"], ("no dee", "revision main")),
    ],
)
async def test_ambiguous_reference_is_rejected_with_the_candidates(
    provider: LocalServer, file_host: LocalServer, path: str, names: list[str], words: tuple[str, ...]
) -> None:
    publish_on_hub(provider, file_host, "o/r", dict.fromkeys(names, BODY))
    with pytest.raises(InvalidLora) as caught:
        await resolve(provider, HubFile("o/r", "main", path))
    assert [word for word in words if word not in caught.value.why] == []
    assert caught.value.what.startswith("huggingface.co/o/r")


async def test_adapter_config_next_to_the_weights_is_resolved(provider: LocalServer, file_host: LocalServer) -> None:
    files = {"a/adapter_model.safetensors": BODY, "a/adapter_config.json": b"{}", "adapter_config.json": b"{}"}
    publish_on_hub(provider, file_host, "o/r", files)
    resolved = await resolve(provider, HubFile("o/r"))
    assert resolved.config is not None
    assert resolved.config.url.endswith(f"/o/r/resolve/{COMMIT}/a/adapter_config.json")


@pytest.mark.parametrize(
    "response",
    [
        [],
        {},
        {"sha": None, "siblings": []},
        {"sha": COMMIT, "siblings": [{"name": "x"}]},
        {"sha": COMMIT, "siblings": [{"rfilename": "x.safetensors", "lfs": {"oid": 1}}]},
        {"sha": COMMIT, "siblings": "x.safetensors"},
    ],
)
async def test_unexpected_response_is_an_error(provider: LocalServer, response: Mapping[str, Any]) -> None:
    provider.respond("/api/models/o/r/revision/main", body=json.dumps(response).encode())
    with pytest.raises(FetchFailed, match=r"Hugging Face.*unexpected response"):
        await resolve(provider, HubFile("o/r"))


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        ("401 Unauthorized", "RepoNotFound", ("private", "HF_TOKEN")),
        ("401 Unauthorized", "", ("HF_TOKEN", "no access")),
        ("403 Forbidden", "GatedRepo", ("gated", "HF_TOKEN")),
        ("404 Not Found", "RepoNotFound", ("private",)),
        ("404 Not Found", "RevisionNotFound", ("no such revision",)),
        ("500 Internal Server Error", "", ("500 Internal Server Error",)),
    ],
)
async def test_error_response_is_reported_with_a_hint(
    provider: LocalServer, status: str, code: str, words: tuple[str, ...]
) -> None:
    provider.respond("/api/models/o/r/revision/main", status=status, X_Error_Code=code)
    with pytest.raises(FetchFailed) as caught:
        await resolve(provider, HubFile("o/r"))
    assert [word for word in words if word not in caught.value.why] == []
    assert HUB_TOKEN not in str(caught.value)
