"""Checks what the documentation says about LoRAs: the reference forms, suffixes, variables and example settings."""

import re
from typing import Any

import pytest
import yaml

from serve.lora.archive import ACCEPTED_SUFFIXES, WEIGHTS_SUFFIX
from serve.lora.parse_reference import check_aliases, parse_reference
from serve.settings import ENVIRONMENT_VARIABLES, LoraSettings, Settings
from tests.markdown import ROOT, rows

API, OPERATIONS = ROOT / "docs" / "api.md", ROOT / "docs" / "operations.md"
SETTINGS = LoraSettings.model_validate({"aliases": {"sketch": "fofr/sketch"}, "folders": ["/loras"]})
FORMS = [(example.strip("`"), meaning) for _, example, meaning in rows(API, "| form | example | what it means |")]


@pytest.mark.parametrize(("text", "meaning"), FORMS)
def test_documented_form_is_parsed(text: str, meaning: str) -> None:
    parse_reference(text, SETTINGS)


def test_forms_documented_as_the_same_are_equal_and_others_are_not() -> None:
    previous = None
    for text, meaning in FORMS:
        reference = parse_reference(text, SETTINGS)
        assert (reference == previous) == (meaning == "the same"), text
        previous = reference


def test_every_archive_suffix_is_documented() -> None:
    assert all(f"`{suffix}`" in API.read_text() for suffix in ACCEPTED_SUFFIXES if suffix != WEIGHTS_SUFFIX)


def test_documented_environment_variables_exist() -> None:
    documented = {name.strip("`") for name, _ in rows(OPERATIONS, "| variable | what it opens |")}
    assert documented == set(ENVIRONMENT_VARIABLES.values()) - {"FLUX_SERVE_TOKEN"}


def test_documented_example_is_valid_settings() -> None:
    (text,) = re.findall(r"^```yaml\n(lora:.*?)^```$", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL)
    example: dict[str, Any] = yaml.safe_load(text)
    settings = Settings.model_validate(example)
    check_aliases(settings.lora)
    assert settings.lora != LoraSettings()
