"""The strengths that PEFT keeps apart are found, and nonsense among them is passed over."""

import json

import pytest

from serve.lora.convert import HEADER_KEY, PeftConfig, adapter_configs_in_header, parse_adapter_config


@pytest.mark.parametrize(
    ("config", "layer", "scale"),
    [
        ({}, "a.to_q", 1.0),
        ({"lora_alpha": 8, "r": 4}, "a.to_q", 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, "a.to_q", 4.0),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": 2}}, "a.to_q", 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": 2}}, "a.not_to_q", 2.0),
        ({"lora_alpha": 8, "alpha_pattern": {"^a.to_q$": 2}}, "a.to_q", 0.5),
        ({"alpha_pattern": {"b.to_q": 2}}, "a.to_q", 1.0),
        ({"lora_alpha": 0}, "a.to_q", 0.0),
        ({"lora_alpha": "8"}, "a.to_q", 1.0),
        ({"lora_alpha": True}, "a.to_q", 1.0),
        ({"lora_alpha": float("nan")}, "a.to_q", 1.0),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": None}}, "a.to_q", 2.0),
        ({"lora_alpha": 8, "alpha_pattern": ["to_q"]}, "a.to_q", 2.0),
    ],
)
def test_a_layer_has_its_own_strength_or_that_of_all(config: dict[str, object], layer: str, scale: float) -> None:
    assert PeftConfig.from_dict(config).scale(layer, rank=4) == scale


def test_a_pattern_that_would_take_a_regular_expression_for_ever_takes_no_time() -> None:
    config = PeftConfig.from_dict({"alpha_pattern": {"(a+)+$": 2, "(x|x)*y": 3}})
    assert config.scale("a" * 100_000 + "!", rank=1) == 1.0


def test_the_header_has_strengths_by_part() -> None:
    told = {"transformer.lora_alpha": 8, "text_encoder.lora_alpha": 2, "unet.lora_alpha": 5}
    configs = adapter_configs_in_header({HEADER_KEY: json.dumps(told), "format": "pt"})
    assert {part: config.scale("x", 4) for part, config in configs.items()} == {"transformer": 2.0, "clip": 0.5}


@pytest.mark.parametrize(
    "metadata", [{}, {HEADER_KEY: ""}, {HEADER_KEY: "[1]"}, {HEADER_KEY: "{}"}, {HEADER_KEY: "[" * 9**6}]
)
def test_a_header_without_strengths_has_none(metadata: dict[str, str]) -> None:
    assert adapter_configs_in_header(metadata) == {}


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"{", b"[" * 100_000])
def test_a_damaged_configuration_changes_nothing(text: bytes) -> None:
    assert parse_adapter_config(text).scale("x", 4) == 1.0
