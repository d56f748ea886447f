"""What the documents say of LoRAs is true: the forms are read, the example is a tree of settings."""

import re
from typing import Any

import pytest
import yaml

from serve.lora.parse import ENDINGS, check_aliases, parse_reference
from serve.settings import ENVIRONMENT_VARIABLES, LoraSettings, Settings
from tests.markdown import ROOT, rows

API, OPERATIONS = ROOT / "docs" / "api.md", ROOT / "docs" / "operations.md"
SETTINGS = LoraSettings.model_validate({"aliases": {"sketch": "fofr/sketch"}, "folders": ["/loras"]})
FORMS = [(example.strip("`"), meaning) for _, example, meaning in rows(API, "| form | example | what it means |")]


@pytest.mark.parametrize(("text", "meaning"), FORMS)
def test_every_form_that_is_told_is_read(text: str, meaning: str) -> None:
    parse_reference(text, SETTINGS)


def test_what_is_told_to_be_the_same_is_and_nothing_else() -> None:
    before = None
    for text, meaning in FORMS:
        reference = parse_reference(text, SETTINGS)
        assert (reference == before) == (meaning == "the same"), text
        before = reference


def test_every_ending_is_told() -> None:
    assert all(f"`{ending}`" in API.read_text() for ending in ENDINGS if ending != ".safetensors")


def test_the_variables_that_are_told_are_read() -> None:
    told = {name.strip("`") for name, _ in rows(OPERATIONS, "| variable | what it opens |")}
    assert told == set(ENVIRONMENT_VARIABLES.values()) - {"FLUX_SERVE_TOKEN"}


def test_the_example_is_a_tree_of_settings() -> None:
    (text,) = re.findall(r"^```yaml\n(lora:.*?)^```$", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL)
    tree: dict[str, Any] = yaml.safe_load(text)
    settings = Settings.model_validate(tree)
    check_aliases(settings.lora)
    assert settings.lora != LoraSettings()
