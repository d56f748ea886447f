"""What a reference to the Hugging Face hub means now, asked of a server that answers as the hub does."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pytest

from serve.errors import FetchFailed, InvalidLora
from serve.lora.provider import ResolvedFile
from serve.lora.reference import HubFile
from tests.local_server import LocalServer
from tests.unit.lora.fake_providers import COMMIT, HUB_TOKEN, asked_with, locate, publish_on_hub

BODY = b"weights"
SHA256 = hashlib.sha256(BODY).hexdigest()
REPOSITORY = "multimodalart/flux-tarot-v1"


def path_of(located: ResolvedFile, site: LocalServer) -> str:
    return located.file.url.removeprefix(f"http://127.0.0.1:{site.port}")


async def test_the_one_file_is_found_at_the_commit(site: LocalServer, store: LocalServer) -> None:
    publish_on_hub(site, store, REPOSITORY, {"README.md": b"#", "tarot v1.safetensors": BODY, "a.png": b"p"})
    located = await locate(site, HubFile(REPOSITORY))
    assert path_of(located, site) == f"/{REPOSITORY}/resolve/{COMMIT}/tarot%20v1.safetensors"
    assert (located.file.sha256, located.revision, located.config) == (SHA256, SHA256, None)
    assert asked_with(site, "authorization") == [
        (f"/api/models/{REPOSITORY}/revision/main?blobs=true", f"Bearer {HUB_TOKEN}")
    ]


async def test_a_revision_is_asked_for_as_one_name(site: LocalServer, store: LocalServer) -> None:
    publish_on_hub(site, store, "o/r", {"x.safetensors": BODY}, revision="refs%2Fpr%2F3")
    located = await locate(site, HubFile("o/r", "refs/pr/3", "x.safetensors"))
    assert path_of(located, site) == f"/o/r/resolve/{COMMIT}/x.safetensors"


async def test_what_is_small_is_named_by_the_commit(site: LocalServer, store: LocalServer) -> None:
    tree = {"sha": COMMIT, "siblings": [{"rfilename": "x.safetensors"}], "more": "to come"}
    site.answer("/api/models/o/r/revision/main", body=json.dumps(tree).encode())
    located = await locate(site, HubFile("o/r"))
    assert (located.file.sha256, located.revision) == (None, COMMIT)


@pytest.mark.parametrize(
    ("path", "names", "chosen"),
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
async def test_it_is_clear_which_file_is_meant(
    site: LocalServer, store: LocalServer, path: str, names: list[str], chosen: str
) -> None:
    publish_on_hub(site, store, "o/r", dict.fromkeys(names, BODY))
    assert path_of(await locate(site, HubFile("o/r", "main", path)), site) == f"/o/r/resolve/{COMMIT}/{chosen}"


@pytest.mark.parametrize(
    ("path", "names", "why"),
    [
        ("", [], "no .safetensors file is in the repository at main"),
        ("", ["README.md", "model.bin"], "no .safetensors file is in the repository at main"),
        (
            "",
            ["b.safetensors", "a.safetensors"],
            "several weights files, name one of them: a.safetensors, b.safetensors",
        ),
        ("", ["b.safetensors", "a.safetensors", "c.zip"], "several weights files, name one of them: a.safetensors, b"),
        ("", ["a.tar", "b.zip"], "several weights files, name one of them: a.tar, b.zip"),
        ("", [f"{number}.safetensors" for number in range(10)], "7.safetensors and 2 more"),
        ("c.safetensors", ["a.safetensors"], "there is no c.safetensors in the repository at main"),
        ("README.md", ["a.safetensors"], "there is no README.md in the repository at main"),
        ("dee", ["deep/a.safetensors"], "there is no dee in the repository at main"),
    ],
)
async def test_it_is_said_what_is_there_where_it_is_not_clear(
    site: LocalServer, store: LocalServer, path: str, names: list[str], why: str
) -> None:
    publish_on_hub(site, store, "o/r", dict.fromkeys(names, BODY))
    with pytest.raises(InvalidLora) as caught:
        await locate(site, HubFile("o/r", "main", path))
    assert why in caught.value.why
    assert caught.value.what.startswith("huggingface.co/o/r")


async def test_pefts_configuration_comes_along(site: LocalServer, store: LocalServer) -> None:
    files = {"a/adapter_model.safetensors": BODY, "a/adapter_config.json": b"{}", "adapter_config.json": b"{}"}
    publish_on_hub(site, store, "o/r", files)
    located = await locate(site, HubFile("o/r"))
    assert located.config is not None
    assert located.config.url.endswith(f"/o/r/resolve/{COMMIT}/a/adapter_config.json")


@pytest.mark.parametrize(
    "tree",
    [
        [],
        {},
        {"sha": None, "siblings": []},
        {"sha": COMMIT, "siblings": [{"name": "x"}]},
        {"sha": COMMIT, "siblings": [{"rfilename": "x.safetensors", "lfs": {"oid": 1}}]},
        {"sha": COMMIT, "siblings": "x.safetensors"},
    ],
)
async def test_an_answer_of_another_shape_is_a_failure(site: LocalServer, tree: Mapping[str, Any]) -> None:
    site.answer("/api/models/o/r/revision/main", body=json.dumps(tree).encode())
    with pytest.raises(FetchFailed, match="Hugging Face describes the repository in an unknown way"):
        await locate(site, HubFile("o/r"))


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [
        ("401 Unauthorized", "RepoNotFound", "there is no such repository, or it is private; the account of this"),
        ("401 Unauthorized", "", "the account of this service's HF_TOKEN may not read it"),
        ("403 Forbidden", "GatedRepo", "the repository is gated, its terms must be accepted on its page; the account"),
        ("404 Not Found", "RepoNotFound", "there is no such repository, or it is private"),
        ("404 Not Found", "RevisionNotFound", "the repository has no such revision"),
        ("500 Internal Server Error", "", "its server answered 500 Internal Server Error"),
    ],
)
async def test_a_refusal_says_what_to_do(site: LocalServer, status: str, code: str, why: str) -> None:
    site.answer("/api/models/o/r/revision/main", status=status, X_Error_Code=code)
    with pytest.raises(FetchFailed) as caught:
        await locate(site, HubFile("o/r"))
    assert why in caught.value.why
    assert HUB_TOKEN not in str(caught.value)
