"""The documented LoRA reference forms, suffixes, environment variables and example settings match the code."""

import re
from typing import Any

import pytest
import yaml

from serve.lora.file_type import ACCEPTED_SUFFIXES, WEIGHTS_SUFFIX
from serve.lora.parse_reference import check_aliases, parse_reference
from serve.settings import ENVIRONMENT_VARIABLES, LoraSettings, Settings
from tests.markdown import ROOT, section, table_with

API, OPERATIONS = ((ROOT / "docs" / name).read_text() for name in ("api.md", "operations.md"))
SETTINGS = LoraSettings.model_validate({"aliases": {"sketch": "fofr/sketch"}, "folders": ["/loras"]})
FORMS = [(example.strip("`"), meaning) for _, example, meaning in table_with(API, "Replicate")]


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
    assert all(f"`{suffix}`" in API for suffix in ACCEPTED_SUFFIXES if suffix != WEIGHTS_SUFFIX)


def test_documented_environment_variables_exist() -> None:
    documented = {name.strip("`") for name, _ in table_with(section(OPERATIONS, "LoRAs"), "`HF_TOKEN`")}
    assert documented == set(ENVIRONMENT_VARIABLES.values()) - {"FLUX_SERVE_TOKEN"}


def test_documented_example_is_valid_settings() -> None:
    (text,) = re.findall(r"^```yaml\n(lora:.*?)^```$", OPERATIONS, re.MULTILINE | re.DOTALL)
    example: dict[str, Any] = yaml.safe_load(text)
    settings = Settings.model_validate(example)
    check_aliases(settings.lora)
    assert settings.lora != LoraSettings()
