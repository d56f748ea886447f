"""Where models come from, and what an operator reads when they do not come."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve.engine.checkpoint_files import resolve_folder
from serve.errors import ModelLoadError
from tests.unit.engine.hub import REVISION, Hub

REFUSALS = {
    "owner/gated": (403, "GatedRepo"),
    "owner/private": (401, "RepoNotFound"),
    "owner/missing": (404, "RepoNotFound"),
    "owner/unrevised": (404, "RevisionNotFound"),
    "owner/odd": (418, ""),
}
ASK = """
import json, sys
from serve.engine.checkpoint_files import resolve_folder
from serve.errors import ModelLoadError

answers = {}
for source in sys.argv[3:]:
    try:
        answers[source] = str(resolve_folder(source, sys.argv[1], ["part/*.json"], sys.argv[2] or None))
    except ModelLoadError as error:
        answers[source] = str(error)
print(json.dumps(answers))
"""


def ask(sources: list[str], token: str, **environment: str) -> dict[str, str]:
    """What a process of its own answers: the hub's client reads its environment once, when it is imported."""
    command = [sys.executable, "-c", ASK, REVISION, token, *sources]
    done = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, timeout=60)
    answers: dict[str, str] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    folder = tmp_path_factory.mktemp("repository")
    for name in ("part/config.json", "part/weights.bin", "other/config.json", "config.json", "huge.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    return Hub(folder, REFUSALS)


@pytest.fixture(scope="module")
def answers(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = str(tmp_path_factory.mktemp("cache"))
    with hub.serving():
        return ask(["owner/name", *REFUSALS], "secret", HF_ENDPOINT=hub.endpoint, HF_HUB_CACHE=cache)


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve_folder(str(tmp_path), None, [], None) == tmp_path


def test_of_a_repository_only_what_is_asked_for_is_fetched(hub: Hub, answers: dict[str, str]) -> None:
    folder = Path(answers["owner/name"])
    assert [str(file.relative_to(folder)) for file in folder.rglob("*.*")] == ["part/config.json"]
    assert (folder / "part/config.json").read_text() == "part/config.json"
    assert hub.fetched == {"part/config.json"}


def test_the_token_goes_to_the_hub_and_into_no_answer(hub: Hub, answers: dict[str, str]) -> None:
    assert "Bearer secret" in hub.tokens
    assert "secret" not in json.dumps(answers)


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("owner/gated", "accept its licence"),
        ("owner/private", "correct `source` or the token"),
        ("owner/missing", "correct `source` or the token"),
        ("owner/unrevised", "correct `revision`"),
        ("owner/odd", "check the network, or name a folder"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(answers: dict[str, str], source: str, advice: str) -> None:
    assert answers[source].startswith(f"cannot use the model {source}: ")
    assert advice in answers[source]
    assert "\n" not in answers[source]


def test_without_a_network_only_the_local_cache_counts(tmp_path: Path) -> None:
    (answer,) = ask(["owner/name"], "", HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path)).values()
    assert answer.endswith("the hub cannot be reached; check the network, or name a folder")


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("/no/such/folder", "there is no such folder"),
        ("./no-such-folder", "there is no such folder"),
        ("~/no-such-folder", "there is no such folder"),
        ("a/b/c", "neither a local folder nor a repository `owner/name`"),
    ],
)
def test_what_cannot_be_a_source_is_not_looked_up(source: str, advice: str) -> None:
    with pytest.raises(ModelLoadError, match=advice) as caught:
        resolve_folder(source, None, [], None)
    assert caught.value.source == source
