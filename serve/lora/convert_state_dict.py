"""Converts the tensors of any published LoRA format to `LoraWeights` for one model geometry.

Every tensor is applied, reported as unapplied with a reason, or the file is rejected. Tests compare the result with
diffusers' own converters.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from serve.lora.decompositions import VECTOR_ROLES, KroneckerProduct, LowRankProduct, Tensors, combine
from serve.lora.key_mapping import (
    LayerTarget,
    Part,
    TensorGroup,
    group_tensors,
    layer_shapes,
    layer_targets,
    module_name,
)
from serve.lora.model_geometry import ModelGeometry, Shape
from serve.lora.peft_config import PeftConfig
from serve.lora.safetensors_header import InvalidLoraFile, display_name
from serve.lora.signatures import base_model_of_shape
from serve.lora.weights import Kronecker, LoraWeights, LowRank

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
class LayerChange:
    """What a file changes in one layer of the model."""

    low_rank: LowRank | None = None
    kronecker: Kronecker | None = None


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
        changes: dict[tuple[Part, str], LayerChange] = {}
        for group in grouped.groups:
            converted = self._convert_group(group, configs)
            if not converted:
                unapplied[group.name] = "it is empty: its rank is 0, or it is zero"
            for layer, change in converted.items():
                if changes.setdefault((group.target.part, layer), change) is not change:
                    unapplied[group.name] = f"the file also has {layer} under another name"
        if not changes:
            raise InvalidLoraFile(f"none of its tensors apply to this model; {_describe_unapplied(unapplied)}")
        low_ranks = {key: change.low_rank for key, change in changes.items() if change.low_rank}
        return LoraWeights(
            transformer={layer: low_rank for (part, layer), low_rank in low_ranks.items() if part == "transformer"},
            clip={layer: low_rank for (part, layer), low_rank in low_ranks.items() if part == "clip"},
            unapplied=tuple(f"{display_name(name)}: {why}" for name, why in sorted(unapplied.items())),
            kroneckers={
                f"{part}.{layer}": change.kronecker for (part, layer), change in changes.items() if change.kronecker
            },
        )

    def _convert_group(self, group: TensorGroup, configs: Mapping[str, PeftConfig]) -> dict[str, LayerChange]:
        """The change of each layer of the model that the group adapts; none if all its tensors are empty or zero."""
        try:
            stored = {role: _to_stored_dtype(tensor) for role, tensor in group.tensors.items()}
            tensors = {role: tensor for role, tensor in stored.items() if not _is_empty_or_zero(role, tensor)}
            if len(tensors) < len(stored) and not tensors.keys() - {"alpha"}:
                return {}
            return self._convert_tensors(tensors, group, configs)
        except InvalidLoraFile as error:
            raise InvalidLoraFile(f"{error} (in {display_name(group.name)})") from error

    def _convert_tensors(
        self, tensors: Tensors, group: TensorGroup, configs: Mapping[str, PeftConfig]
    ) -> dict[str, LayerChange]:
        target = group.target
        shapes = [self._shapes[target.part, layer] for layer in target.layers]
        outputs = [layer_outputs for layer_outputs, _ in shapes]
        scale, changes = 1.0, [LayerChange() for _ in target.layers]
        if tensors.keys() - VECTOR_ROLES or not tensors.keys() & {"bias", "diff_b"}:
            product = combine(tensors, self._max_rank)
            _check_shape(product.shape, (sum(outputs), shapes[0][1]), target)
            scale = _scale(product.alpha_rank, tensors, group, configs)
            changes = self._split(product, scale, outputs, target)
        bias = _bias(tensors, scale, sum(outputs))
        if bias is not None:
            biases = torch.split(_swap_halves(bias) if target.halves_swapped else bias, outputs)
            changes = [_add_bias(*parts) for parts in zip(changes, biases, shapes, strict=True)]
        layers = zip(target.layers, changes, strict=True)
        return {layer: change for layer, change in layers if change.low_rank or change.kronecker}

    def _split(
        self, product: LowRankProduct | KroneckerProduct, scale: float, outputs: Sequence[int], target: LayerTarget
    ) -> list[LayerChange]:
        """Splits the outputs of a fused layer."""
        if isinstance(product, KroneckerProduct):
            kroneckers = _split_kronecker(product, scale, outputs, target)
            if kroneckers and _costs_less(kroneckers, product.rank):
                return [LayerChange(kronecker=self._check_slots(kronecker)) for kronecker in kroneckers]
            _check_rank(product.rank, self._max_rank)
            product = product.to_low_rank()
        dtype = torch.promote_types(product.down.dtype, product.up.dtype)
        down, up = product.down.to(dtype), product.up.to(dtype)
        up = _swap_halves(up) if target.halves_swapped else up
        pairs = (
            [(down, up)]
            if len(outputs) == 1
            else [_drop_zero_ranks(down, part) for part in torch.split(up, list(outputs))]
        )
        for part_down, _ in pairs:
            _check_rank(part_down.shape[0], self._max_rank)
        return [LayerChange(LowRank(part_down, part_up, scale)) for part_down, part_up in pairs]

    def _check_slots(self, kronecker: Kronecker) -> Kronecker:
        if kronecker.slots > self._max_rank:
            raise InvalidLoraFile(
                f"its LoKr matrices take the memory of rank {kronecker.slots}; at most {self._max_rank} is accepted; "
                "train it with a larger factor"
            )
        return kronecker


def _is_empty_or_zero(role: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor has rank 0, or is a change of zero. Extracted LoRAs have such layers."""
    return not tensor.numel() or (role in ("bias", "diff", "diff_b") and not tensor.count_nonzero())


def _check_rank(rank: int, max_rank: int) -> None:
    if rank > max_rank:
        raise InvalidLoraFile(f"its rank is {rank}; at most {max_rank} is accepted")


def _check_shape(file_shape: Shape, model_shape: Shape, target: LayerTarget) -> None:
    if file_shape != model_shape:
        layer = target.layers[0] if len(target.layers) in (1, 3) else "blocks.linear1"
        base_model = base_model_of_shape(layer, *file_shape)
        raise InvalidLoraFile(
            f"it is made for another model{f', probably {base_model}' if base_model else ''}: "
            f"its weights have the shape {list(file_shape)}, this model's {list(model_shape)}"
        )


def _split_kronecker(
    product: KroneckerProduct, scale: float, outputs: Sequence[int], target: LayerTarget
) -> list[Kronecker]:
    """The rows of each layer; empty if the halves cannot be swapped within the outer factor."""
    if target.halves_swapped and product.outer.shape[0] % 2:
        return []
    outer, inner = product.outer.full(), product.inner.full()
    outer = _swap_halves(outer) if target.halves_swapped else outer
    inner_out, kroneckers, begin = inner.shape[0], list[Kronecker](), 0
    for size in outputs:
        first, last = begin // inner_out, -(-(begin + size) // inner_out)
        kroneckers.append(Kronecker(outer[first:last], inner, begin - first * inner_out, size, scale))
        begin += size
    return kroneckers


def _costs_less(kroneckers: Sequence[Kronecker], rank: int) -> bool:
    """Whether the two products of each layer have fewer multiplications per token than those of low-rank matrices."""
    cost = sum(each.inputs * each.inner.shape[0] + each.outer.numel() * each.inner.shape[0] for each in kroneckers)
    return cost < sum(rank * (each.inputs + each.outputs) for each in kroneckers)


def _swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def _bias(tensors: Tensors, scale: float, outputs: int) -> torch.Tensor | None:
    """The change of the layer's bias: that of the LoRA, scaled like its matrices, and that of the layer itself."""
    biases = [factor * tensors[role].float() for role, factor in (("bias", scale), ("diff_b", 1.0)) if role in tensors]
    for bias in biases:
        if bias.shape != (outputs,):
            raise InvalidLoraFile(f"it has a bias of shape {list(bias.shape)} for {outputs} outputs")
    return sum(biases[1:], biases[0]) if biases else None


def _add_bias(change: LayerChange, bias: torch.Tensor, shape: Shape) -> LayerChange:
    outputs, inputs = shape
    low_rank = change.low_rank or LowRank(torch.zeros(0, inputs), torch.zeros(outputs, 0))
    return replace(change, low_rank=replace(low_rank, bias=bias))


def _to_stored_dtype(tensor: torch.Tensor) -> torch.Tensor:
    """Converts `tensor` to its dtype in `STORED_DTYPES`. Raises `InvalidLoraFile` for NaN and infinite values."""
    # Converted first, because float8 has no `aminmax`.
    stored = tensor.to(STORED_DTYPES.get(tensor.dtype, tensor.dtype))
    # Much faster than `isfinite` of all values; `aminmax` propagates NaN.
    if stored.is_floating_point() and stored.numel() and not all(map(torch.isfinite, torch.aminmax(stored))):
        raise InvalidLoraFile("it contains NaN or infinite values")
    return stored


def _scale(alpha_rank: int | None, tensors: Tensors, group: TensorGroup, configs: Mapping[str, PeftConfig]) -> float:
    """Alpha divided by the rank, from the file's `alpha` tensor or else from PEFT's configuration."""
    if "alpha" not in tensors:
        config = configs.get(group.target.part)
        return config.scale(module_name(group.name), alpha_rank) if config and "diff" not in tensors else 1.0
    if tensors["alpha"].numel() != 1 or not math.isfinite(alpha := float(tensors["alpha"])):
        raise InvalidLoraFile("its alpha is not a single number")
    return 1.0 if alpha_rank is None else alpha / alpha_rank


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
