"""Random LoRAs, LoRA slots and generation requests for the LoRA benchmarks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from serve.engine.lora_manager import ActiveLoras, LoraManager
from serve.engine.lora_slots import LoraSlots
from serve.engine.request import GenerationRequest
from serve.lora.weights import LoraWeights, LowRank
from serve.model_specs import Size
from serve.plan import Plan, PlannedLora

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
    active = manager.acquire([PlannedLora(key=key, scale=SCALE)], {key: lora})
    assert active is not None
    return active


def load_random_lora(slots: LoraSlots, transformer: nn.Module, rank: int) -> ActiveLoras:
    """Loads one random LoRA into `slots`."""
    return acquire_lora(LoraManager(slots), "resident", random_lora(transformer, rank, seed=0))


def make_request(steps: int, loras: Mapping[str, LoraWeights], size: Size = SIZE, **fields: Any) -> GenerationRequest:
    """A request for one image with these LoRAs. `fields` replace fields of its plan."""
    width, height = size
    plan: dict[str, Any] = {
        "pool": "",
        "mode": "text_to_image",
        "prompt": "a red sailboat",
        "size": size,
        "steps": steps,
        "guidance": 3.0,
        "strength": None,
        "seeds": (0,),
        "output_format": "png",
        "output_quality": 80,
        "check_safety": False,
        "max_megapixels": width * height / 1e6,
        "loras": tuple(PlannedLora(key=key, scale=SCALE) for key in loras),
    }
    return GenerationRequest(Plan(**plan | fields), loras=loras)
