"""LoRAs to test with: random, and strong enough that every picture shows them."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from serve.engine.checkpoint import Checkpoint
from serve.engine.lora_manager import LoraManager
from serve.engine.request import LoraRequest
from serve.lora.weights import LoraWeights, LowRank

STRENGTH = 0.3
"""What a LoRA makes of an input of about 1; the linears of embedded checkpoints make about 0.6 of it."""


def make_lora(
    checkpoint: Checkpoint, seed: int, rank: int = 4, layers: str = "", clip: bool = False, **fields: Any
) -> LoraWeights:
    """Acts on the linears of the transformer whose names `layers` matches, and on all of CLIP or none of it.

    `fields` go to each `LowRank`.
    """
    generator = torch.Generator().manual_seed(seed)
    linears = {
        name: module
        for name, module in checkpoint.transformer.named_modules()
        if isinstance(module, nn.Linear) and re.search(layers, name)
    }
    texts = {name: module for name, module in checkpoint.clip.named_modules() if isinstance(module, nn.Linear)}
    return LoraWeights(
        transformer={name: low_rank(linear, rank, generator, **fields) for name, linear in linears.items()},
        clip={name: low_rank(linear, rank, generator, **fields) for name, linear in texts.items()} if clip else {},
    )


def low_rank(linear: nn.Linear, rank: int, generator: torch.Generator, **fields: Any) -> LowRank:
    down = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
    up = torch.randn(linear.out_features, rank, generator=generator) * STRENGTH / rank**0.5
    return LowRank(down, up, **fields)


def lora_requests(**scales: float) -> tuple[LoraRequest, ...]:
    return tuple(LoraRequest(key, scale) for key, scale in scales.items())


def resident_keys(manager: LoraManager, keys: Iterable[str]) -> set[str]:
    """Those of `keys` that are on the device."""
    return {key for key in keys if manager.are_resident([LoraRequest(key, 1.0)])}
