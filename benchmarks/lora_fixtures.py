"""Random LoRAs, LoRA slots and generation requests for the LoRA benchmarks."""

from collections.abc import Mapping

import torch
from torch import nn

from serve.engine.lora_layers import LoraSlots
from serve.engine.lora_manager import ActiveLoras, LoraManager
from serve.engine.request import GenerationRequest, LoraRequest
from serve.lora.weights import LoraWeights, LowRank
from serve.model_specs import Size

SIZE: Size = (512, 512)
SCALE = 0.8


def random_lora(transformer: nn.Module, rank: int, seed: int) -> LoraWeights:
    """A LoRA on every linear layer of `transformer`, in float16 as most published LoRAs are."""
    generator = torch.Generator().manual_seed(seed)

    def random_matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).half()

    layers = {
        path: LowRank(random_matrix(rank, linear.in_features), random_matrix(linear.out_features, rank))
        for path, linear in transformer.named_modules()
        if isinstance(linear, nn.Linear)
    }
    return LoraWeights(transformer=layers, clip={})


def make_lora_slots(transformer: nn.Module, count: int) -> LoraSlots:
    """Slots for LoRAs whose ranks add up to at most `count`."""
    linears = [module for module in transformer.modules() if isinstance(module, nn.Linear)]
    slot_bytes = sum((linear.in_features + linear.out_features) * linear.weight.dtype.itemsize for linear in linears)
    return LoraSlots({"transformer": transformer}, (count + 1) * slot_bytes)


def acquire_lora(manager: LoraManager, key: str, lora: LoraWeights) -> ActiveLoras:
    """The active LoRAs of a request that uses only this LoRA, which is loaded into its slots if it is not resident."""
    active = manager.acquire([LoraRequest(key, SCALE)], {key: lora})
    assert active is not None
    return active


def load_random_lora(slots: LoraSlots, transformer: nn.Module, rank: int) -> ActiveLoras:
    """Loads one random LoRA into `slots`."""
    return acquire_lora(LoraManager(slots), "resident", random_lora(transformer, rank, seed=0))


def make_request(
    steps: int, loras: Mapping[str, LoraWeights], size: Size = SIZE, seeds: tuple[int, ...] = (0,)
) -> GenerationRequest:
    """A text-to-image request that uses all of `loras`."""
    return GenerationRequest(
        prompt="a red sailboat",
        size=size,
        steps=steps,
        seeds=seeds,
        guidance=3.0,
        loras=tuple(LoraRequest(key, SCALE) for key in loras),
        lora_weights=loras,
    )
