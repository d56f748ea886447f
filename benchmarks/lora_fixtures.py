"""What the LoRA benchmark works with: random LoRAs, and jobs that draw with them."""

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
    """For every linear; in float16, as most are published."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).half()

    layers = {
        path: LowRank(matrix(rank, linear.in_features), matrix(linear.out_features, rank))
        for path, linear in transformer.named_modules()
        if isinstance(linear, nn.Linear)
    }
    return LoraWeights(transformer=layers, clip={})


def make_bank(transformer: nn.Module, rows: int) -> LoraSlots:
    """Room for LoRAs whose ranks add up to `rows`, and for no more."""
    linears = [module for module in transformer.modules() if isinstance(module, nn.Linear)]
    row_bytes = sum((linear.in_features + linear.out_features) * linear.weight.dtype.itemsize for linear in linears)
    return LoraSlots({"transformer": transformer}, (rows + 1) * row_bytes)


def mix_of(adapters: LoraManager, key: str, lora: LoraWeights) -> ActiveLoras:
    """What a job with this LoRA draws with, brought to the device if it is not there."""
    mix = adapters.acquire([PlannedLora(key=key, scale=SCALE)], {key: lora})
    assert mix is not None
    return mix


def resident(bank: LoraSlots, transformer: nn.Module, rank: int) -> ActiveLoras:
    """One LoRA that lies on the device."""
    return mix_of(LoraManager(bank), "resident", random_lora(transformer, rank, seed=0))


def make_job(steps: int, loras: Mapping[str, LoraWeights], size: Size = SIZE, **fields: Any) -> GenerationRequest:
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
