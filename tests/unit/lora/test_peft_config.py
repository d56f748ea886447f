"""The scaling options in PEFT's configuration are read, and invalid values are ignored."""

import json

import pytest

from serve.lora.peft_config import (
    ADAPTER_METADATA_KEY,
    PeftConfig,
    adapter_configs_in_header,
    parse_adapter_config,
)


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
def test_scale_uses_the_alpha_of_the_layer_or_the_default(config: dict[str, object], layer: str, scale: float) -> None:
    assert PeftConfig.from_dict(config).scale(layer, rank=4) == scale


def test_alpha_pattern_is_not_run_as_a_regular_expression() -> None:
    config = PeftConfig.from_dict({"alpha_pattern": {"(a+)+$": 2, "(x|x)*y": 3}})
    assert config.scale("a" * 100_000 + "!", rank=1) == 1.0


def test_configs_in_the_header_are_read_by_part() -> None:
    fields = {"transformer.lora_alpha": 8, "text_encoder.lora_alpha": 2, "unet.lora_alpha": 5}
    configs = adapter_configs_in_header({ADAPTER_METADATA_KEY: json.dumps(fields), "format": "pt"})
    assert {part: config.scale("x", 4) for part, config in configs.items()} == {"transformer": 2.0, "clip": 0.5}


@pytest.mark.parametrize("text", [None, "", "[1]", "{}", "[" * 9**6], ids=["no text", "empty", "list", "{}", "nested"])
def test_header_without_configs_gives_none(text: str | None) -> None:
    assert adapter_configs_in_header({} if text is None else {ADAPTER_METADATA_KEY: text}) == {}


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"{", b"[" * 100_000])
def test_damaged_adapter_config_is_ignored(text: bytes) -> None:
    assert parse_adapter_config(text).scale("x", 4) == 1.0
