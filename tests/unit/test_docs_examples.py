"""The commands, code blocks and links in README.md and docs/ are valid."""

import ast
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import yaml
from starlette.routing import Match, Route

from scripts import demo
from serve.api import cog, cog_options, openai, replicate
from serve.api.http_messages import check_body_keys
from serve.api.openai.request import parse_request
from serve.generation_plan import LORA_SCALE_FIELDS, make_plan
from serve.inputs import validate_inputs
from serve.launch.config_file import apply_settings, embedded_config, validate_config
from serve.predictions.request import resolve_version
from serve.settings import Settings
from tests.markdown import DOCUMENTS, ROOT, blocks, commands, options

SETTINGS = Settings()
UNUSED = cast(Any, None)
ROUTES: list[Route] = [
    *replicate.routes(UNUSED, UNUSED, UNUSED, SETTINGS),
    *cog.routes(UNUSED, UNUSED, SETTINGS, UNUSED),
    *openai.routes(UNUSED, UNUSED, SETTINGS),
]


@pytest.mark.parametrize("text", blocks("bash"))
def test_shell_blocks_parse(text: str) -> None:
    assert subprocess.run(["bash", "-n", "-c", text], check=False).returncode == 0


@pytest.mark.parametrize("words", commands("curl"), ids=lambda words: words[-1][:60])
def test_curl_commands_are_valid_requests(words: list[str]) -> None:
    (url,) = (word for word in words if word.startswith("http://127.0.0.1:8000/"))
    (text,) = options(words, "-d")
    body = json.loads(text)
    path = urlsplit(url).path
    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    assert any(route.matches(scope)[0] is Match.FULL for route in ROUTES), path
    raw_inputs = inputs_of(path, body)
    inputs, unknown = validate_inputs(raw_inputs, SETTINGS.max_prompt_chars)
    assert not unknown
    loras = {field: field for field in LORA_SCALE_FIELDS if field in raw_inputs}
    plan = make_plan(inputs, SETTINGS, 0, loras, image_size=(640, 480))
    assert plan.size is not None
    assert not [note for note in plan.notes if "no effect" in note]


def inputs_of(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The inputs in the valid body of a request."""
    if path.startswith("/v1/images/"):
        return parse_request(body, SETTINGS).prediction_inputs()[0]
    check_body_keys(body, replicate.KEYS if path.startswith("/v1/") else cog_options.KEYS, frozenset())
    resolve_version(SETTINGS, body.get("version"))
    return dict(body["input"])


def test_curl_commands_cover_every_mode() -> None:
    bodies = [json.loads(options(words, "-d")[0]).get("input", {}) for words in commands("curl")]
    assert any(body.keys() == {"prompt", "image", "mask"} for body in bodies)
    assert any("image" in body and "mask" not in body for body in bodies)
    assert any(body.get("go_fast") for body in bodies)
    assert any(not {"image", "go_fast"} & body.keys() for body in bodies)


@pytest.mark.parametrize("words", commands("scripts/demo"), ids=" ".join)
def test_demo_commands_have_valid_inputs(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out-0.webp").write_bytes(b"an image")
    inputs, unknown = validate_inputs(demo.inputs_of(demo.parse(words)), SETTINGS.max_prompt_chars)
    assert inputs.prompt
    assert not unknown


@pytest.mark.parametrize("words", commands("scripts/serve"), ids=" ".join)
def test_settings_in_serve_commands_are_valid(words: list[str]) -> None:
    assignments = dict(assignment.split("=", 1) for assignment in options(words, "--set"))
    validate_config(apply_settings(embedded_config(), assignments))
    assert all((ROOT / word).exists() for word in words if word.endswith(".yaml"))


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_blocks_are_valid_settings(text: str) -> None:
    Settings.model_validate(yaml.safe_load(text))


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_parse_and_have_valid_inputs(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Dict) and any(
            isinstance(key, ast.Constant) and key.value == "prompt" for key in node.keys
        ):
            # Calls, such as open(), stand for images.
            image = ast.Constant("https://example.com/image.png")
            node.values = [value if isinstance(value, ast.Constant) else image for value in node.values]
            inputs, unknown = validate_inputs(ast.literal_eval(node), SETTINGS.max_prompt_chars)
            assert not unknown
            make_plan(inputs, SETTINGS, 0)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_scripts_links_and_paths_exist(document: Path) -> None:
    text = document.read_text()
    for script in set(re.findall(r"\b(scripts/[a-z-]+|\.ci/run)\b", text)):
        assert os.access(ROOT / script, os.X_OK), script
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / link).exists(), link
    for path in re.findall(r"`((?:serve|tests|benchmarks|examples)/[\w./]+|engine/\w+\.py|\w+\.yaml)`", text):
        assert (ROOT / path).exists() or (ROOT / "serve" / path).exists(), path
