"""The scaling options in PEFT's configuration are read, and invalid values are ignored."""

import itertools
import json
from typing import Any

import pytest
from peft import LoKrConfig, LoraConfig, get_peft_model
from peft.tuners.lokr import LoKrLayer
from peft.tuners.lora import LoraLayer
from torch import nn

from serve.lora import peft_config
from serve.lora.peft_config import (
    ADAPTER_METADATA_KEY,
    PatternTable,
    PeftConfig,
    adapter_configs_in_header,
    parse_adapter_config,
)
from serve.lora.safetensors_header import InvalidLoraFile


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


def test_rank_of_zero_is_not_replaced_by_that_of_the_config() -> None:
    assert PeftConfig.from_dict({"lora_alpha": 8, "r": 4}).scale("a.to_q", rank=0) == 1.0


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("to_q", "to_k", "to_v")})
        self.proj_out = nn.Linear(8, 8)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(11))
        self.proj_out = nn.Linear(8, 8)


PATTERNS: list[dict[str, int]] = [
    {r"blocks\.\d+\.attn\.to_[qk]": 3},
    {r"blocks\.1\.attn\.to_q": 3, r"to_q": 5},
    {r"to_q": 5, r"blocks\.1\.attn\.to_q": 3},
    {r".*\.to_v": 3},
    {"to_q|to_k": 3},
    {"^proj_out": 3, "proj_out": 5},
    {"^blocks.1.proj_out$": 3},
    {"o_q": 3},
    {"blocks.1": 3},
    {"proj.out": 3},
    {r"blocks\.(?!1\.)\d{1,2}\..*": 3},
    {r"(?i:TO_Q)": 3},
    {"attn": 3, "": 5},
    {"blocks.10.attn.to_q": 3},
]


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("field", ["alpha_pattern", "rank_pattern"])
def test_patterns_give_the_scales_of_peft(field: str, pattern: dict[str, int], rank_stabilized: bool) -> None:
    fields: dict[str, Any] = {"r": 2, "lora_alpha": 6, "use_rslora": rank_stabilized, field: pattern}
    model = get_peft_model(Transformer(), LoraConfig(target_modules=["to_q", "to_k", "to_v", "proj_out"], **fields))
    config = PeftConfig.from_dict(fields)
    compared = 0
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            assert config.scale(name, module.r["default"]) == module.scaling["default"], name
            assert config.scale(name, None) == module.scaling["default"], name
            compared += 1
    assert compared == 45


@pytest.mark.parametrize("field", ["alpha_pattern", "rank_pattern"])
def test_patterns_of_lokr_give_the_scales_of_peft(field: str) -> None:
    """PEFT divides by the rank of its configuration, also if both factors are full matrices."""
    fields: dict[str, Any] = {"r": 4, "alpha": 6, field: {r"blocks\.\d\.attn\.to_[qk]": 8}}
    model = get_peft_model(Transformer(), LoKrConfig(target_modules=["to_q", "proj_out"], **fields))
    config = PeftConfig.from_dict(fields)
    layers = {name: layer for name, layer in model.get_base_model().named_modules() if isinstance(layer, LoKrLayer)}
    assert len(layers) == 23
    assert all(config.scale(name, None) == layer.scaling["default"] for name, layer in layers.items())


@pytest.mark.parametrize("field", ["alpha_pattern", "rank_pattern"])
@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        ("to_[q", "not a valid"),
        ("(?P<x>a", "not a valid"),
        ("x" * 501, "501"),
        ("a{1000}", "braces"),
        ("(?:(?:(?:a{99}){99}){1,99})", "repeat"),
        ("(?:(?:" + "a." * 230 + "){99}){99}", "repeat"),
        ("(abc){e<5}", "braces"),
        (r"\p{L}", "braces"),
        ("(?i)TO_Q", "not a valid"),
        ("(?:.*a)*" * 40, "too long"),
    ],
)
def test_unusable_pattern_is_refused_with_its_config(
    monkeypatch: pytest.MonkeyPatch, field: str, pattern: str, word: str
) -> None:
    monkeypatch.setattr(peft_config, "MAX_MATCHING_S", 0.2)
    with pytest.raises(InvalidLoraFile, match="adapter_config") as caught:
        PeftConfig.from_dict({"lora_alpha": 1, "r": 1, field: {pattern: 2}}).scale(f"{'a' * 10_000}!", None)
    message = str(caught.value)
    assert field in message
    assert word in message
    assert pattern[:10] in message


def test_size_of_all_patterns_is_limited() -> None:
    patterns = {f"{'a' * 300}{number}{{99}}": 1.0 for number in range(20)}
    PatternTable("alpha_pattern", dict(list(patterns.items())[:9]))
    with pytest.raises(InvalidLoraFile, match="repeat"):
        PatternTable("alpha_pattern", patterns)


def test_number_of_patterns_is_limited() -> None:
    with pytest.raises(InvalidLoraFile, match=r"5000.*4096"):
        PeftConfig.from_dict({"alpha_pattern": {str(number): 1 for number in range(5000)}})


def test_time_to_compile_all_patterns_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_config, "MAX_MATCHING_S", 5)
    clock = itertools.count()
    PatternTable("alpha_pattern", {f"[{letter}]": 1.0 for letter in "abcd"}, lambda: next(clock))
    with pytest.raises(InvalidLoraFile, match=r"\[e\].*too long"):
        PatternTable("alpha_pattern", {f"[{letter}]": 1.0 for letter in "abcdefg"}, lambda: next(clock))


def test_time_to_compile_and_match_all_patterns_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_config, "MAX_MATCHING_S", 5)
    clock = itertools.count()
    table = PatternTable("alpha_pattern", {"[x]": 1.0}, lambda: next(clock))
    assert [table.find("y") for _ in range(3)] == [None] * 3
    with pytest.raises(InvalidLoraFile, match="too long"):
        table.find("y")


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
