"""Random LoRAs, strong enough to change every image."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from serve.engine.checkpoint import Checkpoint
from serve.engine.lora_layers import LoraSlots
from serve.engine.lora_manager import LoraManager
from serve.engine.request import LoraRequest
from serve.lora.weights import Kronecker, LoraWeights, LowRank

STRENGTH = 0.3
"""Magnitude of a LoRA's output for an input of about 1. The linear layers of embedded checkpoints output about 0.6."""


def make_lora(
    checkpoint: Checkpoint,
    seed: int,
    rank: int = 4,
    layers: str = "",
    clip: bool = False,
    biases: bool = False,
    **fields: Any,
) -> LoraWeights:
    """A LoRA for the transformer's linear layers whose names match `layers`, and with `clip` for all of CLIP's.

    `fields` are passed to each `LowRank`.
    """
    generator = torch.Generator().manual_seed(seed)
    transformer_linears = {
        name: module
        for name, module in checkpoint.transformer.named_modules()
        if isinstance(module, nn.Linear) and re.search(layers, name)
    }
    clip_linears = {name: module for name, module in checkpoint.clip.named_modules() if isinstance(module, nn.Linear)}

    def make_part(linears: Mapping[str, nn.Linear]) -> dict[str, LowRank]:
        part = {name: make_low_rank(linear, rank, generator, **fields) for name, linear in linears.items()}
        return {name: _with_bias(matrix, generator) for name, matrix in part.items()} if biases else part

    return LoraWeights(make_part(transformer_linears), make_part(clip_linears) if clip else {})


def make_kronecker_lora(checkpoint: Checkpoint, seed: int, layers: str) -> LoraWeights:
    """A LoRA of Kronecker products for the transformer's linear layers whose names match `layers`."""
    generator = torch.Generator().manual_seed(seed)
    kroneckers = {}
    for name, module in checkpoint.transformer.named_modules():
        if isinstance(module, nn.Linear) and re.search(layers, name):
            outer = torch.randn(4, 4, generator=generator)
            inner = torch.randn(module.out_features // 4, module.in_features // 4, generator=generator)
            strength = STRENGTH / module.in_features**0.5
            kroneckers[f"transformer.{name}"] = Kronecker(outer, inner, 0, module.out_features, strength)
    return LoraWeights({}, {}, (), kroneckers)


def _with_bias(matrix: LowRank, generator: torch.Generator) -> LowRank:
    return replace(matrix, bias=torch.randn(matrix.up.shape[0], generator=generator) * STRENGTH)


def make_low_rank(linear: nn.Linear, rank: int, generator: torch.Generator, **fields: Any) -> LowRank:
    down = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
    up = torch.randn(linear.out_features, rank, generator=generator) * STRENGTH / rank**0.5
    return LowRank(down, up, **fields)


def write_to_slots(slots: LoraSlots, numbers: Sequence[int], matrices: Mapping[str, LowRank]) -> None:
    """Writes `matrices`, by layer, to slots. Other layers get zeros."""
    slots.load(numbers, slots.stage(len(numbers), matrices))


def lora_requests(**scales: float) -> tuple[LoraRequest, ...]:
    return tuple(LoraRequest(key, scale) for key, scale in scales.items())


def resident_keys(manager: LoraManager, keys: Iterable[str]) -> set[str]:
    """The `keys` that are on the device."""
    return {key for key in keys if manager.are_resident([LoraRequest(key, 1.0)])}
