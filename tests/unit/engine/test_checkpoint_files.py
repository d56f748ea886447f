"""Checkpoint folders from local paths and from a fake Hugging Face Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from serve.engine import checkpoint_files
from serve.engine.checkpoint_files import resolve_folder
from serve.errors import ModelLoadError
from tests.unit.engine.fake_hub import REVISION, FakeHub

HUB_ERRORS = {
    "owner/gated": (403, "GatedRepo"),
    "owner/private": (401, "RepoNotFound"),
    "owner/missing": (404, "RepoNotFound"),
    "owner/unrevised": (404, "RevisionNotFound"),
    "owner/odd": (418, ""),
}
RESOLVE_SCRIPT = """
import json, sys
from serve.engine.checkpoint_files import resolve_folder
from serve.errors import ModelLoadError

results = {}
for source in sys.argv[3:]:
    try:
        results[source] = str(resolve_folder(source, sys.argv[1], ["part/*.json"], sys.argv[2] or None))
    except ModelLoadError as error:
        results[source] = str(error)
print(json.dumps(results))
"""


def resolve_in_subprocess(sources: list[str], token: str, **environment: str) -> dict[str, str]:
    """The folder or the error message for each source.

    Runs in a new process, because the hub's client reads its environment only when it is imported.
    """
    command = [sys.executable, "-c", RESOLVE_SCRIPT, REVISION, token, *sources]
    done = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, timeout=60)
    results: dict[str, str] = json.loads(done.stdout)
    return results


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> FakeHub:
    folder = tmp_path_factory.mktemp("repository")
    for name in ("part/config.json", "part/weights.bin", "other/config.json", "config.json", "huge.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    return FakeHub(folder, HUB_ERRORS)


@pytest.fixture(scope="module")
def results(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folder of `owner/name` and the error messages of the other repositories."""
    cache = str(tmp_path_factory.mktemp("cache"))
    with hub.serving():
        return resolve_in_subprocess(
            ["owner/name", *HUB_ERRORS], "secret", HF_ENDPOINT=hub.endpoint, HF_HUB_CACHE=cache
        )


def test_local_folder_is_returned_unchanged(tmp_path: Path) -> None:
    assert resolve_folder(str(tmp_path), None, [], None) == tmp_path


def test_only_matching_files_of_a_repository_are_downloaded(hub: FakeHub, results: dict[str, str]) -> None:
    folder = Path(results["owner/name"])
    assert [str(file.relative_to(folder)) for file in folder.rglob("*.*")] == ["part/config.json"]
    assert (folder / "part/config.json").read_text() == "part/config.json"
    assert hub.requested_files == {"part/config.json"}


def test_token_is_sent_to_the_hub_and_in_no_error_message(hub: FakeHub, results: dict[str, str]) -> None:
    assert "Bearer secret" in hub.authorizations
    assert "secret" not in json.dumps(results)


@pytest.mark.parametrize(
    ("source", "fix"),
    [
        ("owner/gated", "accept its licence"),
        ("owner/private", "`source` or the token"),
        ("owner/missing", "`source` or the token"),
        ("owner/unrevised", "`revision`"),
        ("owner/odd", "check the network"),
    ],
)
def test_hub_error_becomes_one_line_with_a_fix(results: dict[str, str], source: str, fix: str) -> None:
    assert source in results[source]
    assert fix in results[source]
    assert "\n" not in results[source]


def test_offline_source_outside_the_local_cache_is_an_error(tmp_path: Path) -> None:
    (message,) = resolve_in_subprocess(["owner/name"], "", HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path)).values()
    assert "local cache" in message


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("/no/such/folder", "no such folder"),
        ("./no-such-folder", "no such folder"),
        ("~/no-such-folder", "no such folder"),
        ("a/b/c", "`owner/name`"),
    ],
)
def test_invalid_source_is_an_error(source: str, why: str) -> None:
    with pytest.raises(ModelLoadError, match=why) as caught:
        resolve_folder(source, None, [], None)
    assert caught.value.source == source


def test_interrupted_download_raises_model_load_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of the hub's HTTP library are no OSErrors."""

    def fail(*_: Any, **__: Any) -> str:
        raise HTTPError("the connection was closed")

    monkeypatch.setattr(checkpoint_files, "snapshot_download", fail)
    assert not issubclass(HTTPError, OSError)
    with pytest.raises(ModelLoadError, match="network"):
        resolve_folder("owner/name", None, ["*"], None)
