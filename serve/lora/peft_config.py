"""Strengths that PEFT keeps apart from the matrices: in `adapter_config.json`, or in the header of the file. Pure."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

HEADER_KEY = "lora_adapter_metadata"
"""Where diffusers puts it among the metadata of a file, every entry behind the name of the model's part."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What a layer's product is scaled by; without any entry that is 1."""

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Where they differ: by the end of a layer's name."""
    by_root: bool = False
    """Divided by the root of the rank: rank-stabilised LoRA."""

    @classmethod
    def read(cls, tree: Mapping[str, Any]) -> Self:
        """From PEFT's own words. What is no number is left out."""
        pattern = tree.get("alpha_pattern")
        alphas = pattern if isinstance(pattern, dict) else {}
        return cls(
            alpha=_number(tree.get("lora_alpha")),
            alphas={key.strip("^$"): alpha for key, value in alphas.items() if (alpha := _number(value)) is not None},
            by_root=tree.get("use_rslora") is True,
        )

    def scale(self, layer: str, rank: int) -> float:
        """The factor for `layer`, by its own name."""
        alpha = next((alpha for end, alpha in self.alphas.items() if f".{layer}".endswith(f".{end}")), self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.by_root else rank)


def parse(text: str | bytes) -> PeftConfig:
    """The strengths in an `adapter_config.json`; none where it is damaged."""
    return PeftConfig.read(_tree(text))


def of_header(metadata: Mapping[str, str]) -> Mapping[str, PeftConfig]:
    """The strengths in a file's header, by part as `serve.lora.names` has them; empty where there are none."""
    tree = _tree(metadata.get(HEADER_KEY, "{}"))
    parts = {"transformer": "transformer.", "clip": "text_encoder."}
    found = {
        part: {key.removeprefix(prefix): value for key, value in tree.items() if key.startswith(prefix)}
        for part, prefix in parts.items()
    }
    return {part: PeftConfig.read(entries) for part, entries in found.items() if entries}


def _tree(text: str | bytes) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _number(value: object) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable and isinstance(value, int | float) else None
