"""Converts the tensors of any published LoRA format to `LoraWeights` for one model geometry.

Every tensor is applied, reported as unapplied with a reason, or the file is rejected. Tests compare the result with
diffusers' own converters.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from serve.lora.decompositions import LowRankProduct, Tensors, to_low_rank
from serve.lora.key_mapping import LayerTarget, Part, TensorGroup, group_tensors, layer_shapes, layer_targets
from serve.lora.model_geometry import ModelGeometry
from serve.lora.safetensors_header import InvalidLoraFile, shown
from serve.lora.weights import LoraWeights, LowRank

HEADER_KEY = "lora_adapter_metadata"
"""Where diffusers puts it among the metadata of a file, every entry behind the name of the model's part."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What a layer's product is scaled by; without any entry that is 1."""

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Where they differ: by the end of a layer's name."""
    rank_stabilized: bool = False
    """Divided by the root of the rank: rank-stabilised LoRA."""

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Self:
        """From PEFT's own words. What is no number is left out."""
        pattern = tree.get("alpha_pattern")
        alphas = pattern if isinstance(pattern, dict) else {}
        return cls(
            alpha=_number(tree.get("lora_alpha")),
            alphas={key.strip("^$"): alpha for key, value in alphas.items() if (alpha := _number(value)) is not None},
            rank_stabilized=tree.get("use_rslora") is True,
        )

    def scale(self, layer: str, rank: int) -> float:
        """The factor for `layer`, by its own name."""
        alpha = next((alpha for end, alpha in self.alphas.items() if f".{layer}".endswith(f".{end}")), self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def parse_adapter_config(text: str | bytes) -> PeftConfig:
    """The strengths in an `adapter_config.json`; none where it is damaged."""
    return PeftConfig.from_dict(_tree(text))


def adapter_configs_in_header(metadata: Mapping[str, str]) -> Mapping[str, PeftConfig]:
    """The strengths in a file's header, by part as `serve.lora.key_mapping` has them; empty where there are none."""
    tree = _tree(metadata.get(HEADER_KEY, "{}"))
    parts = {"transformer": "transformer.", "clip": "text_encoder."}
    found = {
        part: {key.removeprefix(prefix): value for key, value in tree.items() if key.startswith(prefix)}
        for part, prefix in parts.items()
    }
    return {part: PeftConfig.from_dict(entries) for part, entries in found.items() if entries}


def _tree(text: str | bytes) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _number(value: object) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable and isinstance(value, int | float) else None


STORED_DTYPES = {
    torch.float32: torch.float32,
    torch.float16: torch.float16,
    torch.bfloat16: torch.bfloat16,
    torch.float64: torch.float32,
    torch.float8_e4m3fn: torch.bfloat16,
    torch.float8_e5m2: torch.bfloat16,
}
"""The type of a tensor in a file to that of the matrix made of it, which loses nothing but of float64."""


class StateDictConverter:
    """Reads LoRAs for models of one geometry. What it derives from the geometry, it derives once."""

    def __init__(self, geometry: ModelGeometry, max_rank: int) -> None:
        self._targets = layer_targets(geometry)
        self._shapes = layer_shapes(geometry)
        self._max_rank = max_rank

    def convert(self, tensors: Mapping[str, torch.Tensor], configs: Mapping[str, PeftConfig]) -> LoraWeights:
        """The weights in `tensors`, which are by their names in the file, with strengths kept apart, by part.

        Raises `InvalidLoraFile` with a reason for users.
        """
        inventory = group_tensors(tensors, self._targets)
        unused = dict(inventory.unapplied)
        found: dict[tuple[Part, str], LowRank] = {}
        for group in inventory.groups:
            for layer, low_rank in self._layers(group, configs).items():
                if found.setdefault((group.target.part, layer), low_rank) is not low_rank:
                    unused[group.name] = f"the file has {layer} under another name too"
        if not found:
            raise InvalidLoraFile(f"nothing in it applies to this model; {_instead(unused)}")
        return LoraWeights(
            transformer={layer: low_rank for (part, layer), low_rank in found.items() if part == "transformer"},
            clip={layer: low_rank for (part, layer), low_rank in found.items() if part == "clip"},
            unapplied=tuple(f"{shown(name)}: {why}" for name, why in sorted(unused.items())),
        )

    def _layers(self, group: TensorGroup, configs: Mapping[str, PeftConfig]) -> dict[str, LowRank]:
        """One published layer as the layers of the model that it is for."""
        try:
            product = to_low_rank({role: _finite(tensor) for role, tensor in group.tensors.items()}, self._max_rank)
            scale = _scale(product, group.tensors, group.target, configs)
            return self._split(product, scale, group.target)
        except InvalidLoraFile as error:
            raise InvalidLoraFile(f"{error} (in {shown(group.name)})") from error

    def _split(self, product: LowRankProduct, scale: float, target: LayerTarget) -> dict[str, LowRank]:
        shapes = [self._shapes[target.part, layer] for layer in target.layers]
        heights = [outputs for outputs, _ in shapes]
        made_for, here = (product.up.shape[0], product.down.shape[1]), (sum(heights), shapes[0][1])
        if made_for != here:
            sizes = f"[{made_for[0]}, {made_for[1]}] where this one's are [{here[0]}, {here[1]}]"
            raise InvalidLoraFile(f"it is made for another model, whose weights are {sizes}")
        dtype = torch.promote_types(product.down.dtype, product.up.dtype)
        down, up = product.down.to(dtype), product.up.to(dtype)
        up = torch.cat(up.chunk(2)[::-1]) if target.halves_swapped else up
        if len(target.layers) == 1:
            return {target.layers[0]: self._bounded(LowRank(down, up, scale))}
        parts = zip(target.layers, torch.split(up, heights), strict=True)
        return {layer: self._bounded(LowRank(*_without_zeros(down, part), scale)) for layer, part in parts}

    def _bounded(self, low_rank: LowRank) -> LowRank:
        if low_rank.rank > self._max_rank:
            raise InvalidLoraFile(f"its rank is {low_rank.rank}, at most {self._max_rank} is taken")
        return low_rank


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in a type that is kept; float8 has no operators of its own."""
    kept = tensor.to(STORED_DTYPES.get(tensor.dtype, tensor.dtype))
    # Many times quicker than `isfinite` of each value: NaN comes through, and is no number either.
    if kept.is_floating_point() and kept.numel() and not all(torch.isfinite(end) for end in torch.aminmax(kept)):
        raise InvalidLoraFile("it holds values that are no numbers: NaN or infinite")
    return kept


def _scale(product: LowRankProduct, tensors: Tensors, target: LayerTarget, configs: Mapping[str, PeftConfig]) -> float:
    if product.rank_trained is None:
        return 1.0
    if "alpha" not in tensors:
        config = configs.get(target.part)
        return config.scale(target.layers[0], product.rank_trained) if config else 1.0
    if tensors["alpha"].numel() != 1 or not math.isfinite(alpha := float(tensors["alpha"])):
        raise InvalidLoraFile("its alpha is not one number")
    return alpha / product.rank_trained


def _without_zeros(down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product without the ranks that add nothing: layers fused from several have zeros for each other's."""
    used = up.count_nonzero(dim=0) > 0
    if bool(used.all()) or not bool(used.any()):
        return down, up
    return down[used], up[:, used]


def _instead(unused: Mapping[str, str]) -> str:
    if not unused:
        return "it is empty"
    name, why = next(iter(unused.items()))
    return f"it has {len(unused)} tensors, such as {shown(name)}: {why}"
