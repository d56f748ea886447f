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
from serve.lora.safetensors_header import InvalidLoraFile, display_name
from serve.lora.weights import LoraWeights, LowRank

ADAPTER_METADATA_KEY = "lora_adapter_metadata"
"""Diffusers' `LORA_ADAPTER_METADATA_KEY`: PEFT's configurations in the metadata of a safetensors file."""

STORED_DTYPES = {
    torch.float32: torch.float32,
    torch.float16: torch.float16,
    torch.bfloat16: torch.bfloat16,
    torch.float64: torch.float32,
    torch.float8_e4m3fn: torch.bfloat16,
    torch.float8_e5m2: torch.bfloat16,
}
"""Dtype in a file to the dtype of the converted matrix. Lossless except for float64."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The scaling options of PEFT's `LoraConfig`."""

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Exceptions from `alpha`, by the end of the layer name."""
    rank_stabilized: bool = False
    """Divide alpha by the square root of the rank (rsLoRA)."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Reads PEFT's fields. Values that are not finite numbers are ignored."""
        pattern = config.get("alpha_pattern")
        alphas = pattern if isinstance(pattern, dict) else {}
        return cls(
            alpha=_finite_number(config.get("lora_alpha")),
            alphas={
                key.strip("^$"): alpha for key, value in alphas.items() if (alpha := _finite_number(value)) is not None
            },
            rank_stabilized=config.get("use_rslora") is True,
        )

    def scale(self, layer: str, rank: int) -> float:
        """The factor for `layer`, a name in diffusers or transformers; 1 without alpha."""
        alpha = next((alpha for end, alpha in self.alphas.items() if f".{layer}".endswith(f".{end}")), self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def parse_adapter_config(text: str | bytes) -> PeftConfig:
    """Parses an `adapter_config.json`. A damaged one counts as empty."""
    return PeftConfig.from_dict(_parse_json_object(text))


def adapter_configs_in_header(metadata: Mapping[str, str]) -> Mapping[str, PeftConfig]:
    """The PEFT configurations in the metadata of a safetensors file, by part (`transformer` or `clip`)."""
    fields = _parse_json_object(metadata.get(ADAPTER_METADATA_KEY, "{}"))
    prefixes = {"transformer": "transformer.", "clip": "text_encoder."}
    configs = {
        part: {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}
        for part, prefix in prefixes.items()
    }
    return {part: PeftConfig.from_dict(config) for part, config in configs.items() if config}


def _parse_json_object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _finite_number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number and isinstance(value, int | float) else None


class StateDictConverter:
    """Converts LoRAs for models of one geometry."""

    def __init__(self, geometry: ModelGeometry, max_rank: int) -> None:
        self._targets = layer_targets(geometry)
        self._shapes = layer_shapes(geometry)
        self._max_rank = max_rank

    def convert(self, tensors: Mapping[str, torch.Tensor], configs: Mapping[str, PeftConfig]) -> LoraWeights:
        """Converts tensors, given by their names in the file, with PEFT configurations by part.

        Raises `InvalidLoraFile` with a message for the caller.
        """
        grouped = group_tensors(tensors, self._targets)
        unapplied = dict(grouped.unapplied)
        layers: dict[tuple[Part, str], LowRank] = {}
        for group in grouped.groups:
            for layer, low_rank in self._convert_group(group, configs).items():
                if layers.setdefault((group.target.part, layer), low_rank) is not low_rank:
                    unapplied[group.name] = f"the file also has {layer} under another name"
        if not layers:
            raise InvalidLoraFile(f"none of its tensors apply to this model; {_describe_unapplied(unapplied)}")
        return LoraWeights(
            transformer={layer: low_rank for (part, layer), low_rank in layers.items() if part == "transformer"},
            clip={layer: low_rank for (part, layer), low_rank in layers.items() if part == "clip"},
            unapplied=tuple(f"{display_name(name)}: {why}" for name, why in sorted(unapplied.items())),
        )

    def _convert_group(self, group: TensorGroup, configs: Mapping[str, PeftConfig]) -> dict[str, LowRank]:
        """The low-rank matrices of each layer of the model that the group adapts."""
        try:
            tensors = {role: _to_stored_dtype(tensor) for role, tensor in group.tensors.items()}
            product = to_low_rank(tensors, self._max_rank)
            scale = _scale(product, group.tensors, group.target, configs)
            return self._split(product, scale, group.target)
        except InvalidLoraFile as error:
            raise InvalidLoraFile(f"{error} (in {display_name(group.name)})") from error

    def _split(self, product: LowRankProduct, scale: float, target: LayerTarget) -> dict[str, LowRank]:
        """Splits the outputs of a fused layer."""
        shapes = [self._shapes[target.part, layer] for layer in target.layers]
        outputs = [layer_outputs for layer_outputs, _ in shapes]
        file_shape, model_shape = [product.up.shape[0], product.down.shape[1]], [sum(outputs), shapes[0][1]]
        if file_shape != model_shape:
            raise InvalidLoraFile(
                f"it is made for another model: its weights have the shape {file_shape}, this model's {model_shape}"
            )
        dtype = torch.promote_types(product.down.dtype, product.up.dtype)
        down, up = product.down.to(dtype), product.up.to(dtype)
        up = torch.cat(up.chunk(2)[::-1]) if target.halves_swapped else up
        if len(target.layers) == 1:
            return {target.layers[0]: self._check_rank(LowRank(down, up, scale))}
        parts = zip(target.layers, torch.split(up, outputs), strict=True)
        return {layer: self._check_rank(LowRank(*_drop_zero_ranks(down, part), scale)) for layer, part in parts}

    def _check_rank(self, low_rank: LowRank) -> LowRank:
        if low_rank.rank > self._max_rank:
            raise InvalidLoraFile(f"its rank is {low_rank.rank}; at most {self._max_rank} is accepted")
        return low_rank


def _to_stored_dtype(tensor: torch.Tensor) -> torch.Tensor:
    """Converts `tensor` to its dtype in `STORED_DTYPES`. Raises `InvalidLoraFile` for NaN and infinite values."""
    # Converted first, because float8 has no `aminmax`.
    stored = tensor.to(STORED_DTYPES.get(tensor.dtype, tensor.dtype))
    # Much faster than `isfinite` of all values; `aminmax` propagates NaN.
    if stored.is_floating_point() and stored.numel() and not all(map(torch.isfinite, torch.aminmax(stored))):
        raise InvalidLoraFile("it contains NaN or infinite values")
    return stored


def _scale(product: LowRankProduct, tensors: Tensors, target: LayerTarget, configs: Mapping[str, PeftConfig]) -> float:
    """Alpha divided by the rank, from the file's `alpha` tensor or else from PEFT's configuration."""
    if product.alpha_rank is None:
        return 1.0
    if "alpha" not in tensors:
        config = configs.get(target.part)
        return config.scale(target.layers[0], product.alpha_rank) if config else 1.0
    if tensors["alpha"].numel() != 1 or not math.isfinite(alpha := float(tensors["alpha"])):
        raise InvalidLoraFile("its alpha is not a single number")
    return alpha / product.alpha_rank


def _drop_zero_ranks(down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Drops the ranks that add nothing to this layer.

    If separately trained layers are fused, the ranks of each have zeros for the others.
    """
    used = up.count_nonzero(dim=0) > 0
    if bool(used.all()) or not bool(used.any()):
        return down, up
    return down[used], up[:, used]


def _describe_unapplied(unapplied: Mapping[str, str]) -> str:
    if not unapplied:
        return "it is empty"
    name, why = next(iter(unapplied.items()))
    return f"it has {len(unapplied)} tensors, such as {display_name(name)}: {why}"
