"""Slots with LoRAs for the LoRA benchmarks."""

import sys

from torch import nn

from benchmarks.engine_runs import LORA_SCALE, make_lora
from serve.engine.lora_layers import LoraSlots
from serve.engine.lora_manager import ActiveLoras, LoraManager
from serve.engine.request import LoraRequest
from serve.lora.weights import LoraWeights
from serve.model_specs import Size

SIZE: Size = (512, 512)


def make_lora_slots(transformer: nn.Module, count: int) -> LoraSlots:
    """Slots for LoRAs whose ranks add up to at most `count`."""
    return LoraSlots({"transformer": transformer}, size_bytes=sys.maxsize, max_slots=count)


def acquire_lora(manager: LoraManager, key: str, lora: LoraWeights) -> ActiveLoras:
    """The active LoRAs of a request that uses only this LoRA, which is loaded into its slots if it is not resident."""
    active = manager.acquire([LoraRequest(key, LORA_SCALE)], {key: lora})
    assert active is not None
    return active


def load_random_lora(slots: LoraSlots, transformer: nn.Module, rank: int) -> ActiveLoras:
    """Loads one random LoRA into `slots`."""
    return acquire_lora(LoraManager(slots), "resident", make_lora(transformer, rank, seed=0))
