"""Measures how much a resident LoRA slows down a step of the embedded model and a block of FLUX.1's size."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from benchmarks.engine import DEFAULT_POOL, make_image_states
from benchmarks.geometry import FLUX1_DEV, make_checkpoint, random_transformer
from benchmarks.lora_fixtures import SIZE, load_random_lora, make_lora_slots
from benchmarks.paired_timing import measure_in_turns, relative_overhead
from serve.engine.denoiser import Denoiser
from serve.engine.lora_layers import LoraSlots
from serve.engine.lora_manager import NO_LORAS, ActiveLoras
from serve.settings import Precision

STEP_OVERHEAD_MARGIN = 0.20
"""A step of the embedded model may slow down by the LoRA's share of multiplications plus this."""
MAX_BLOCK_OVERHEAD = 0.05
TEXT_TOKENS, IMAGE_TOKENS = 128, 256
CPU = torch.device("cpu")


def measure_embedded_step(precision: Precision, rank: int, seconds: float) -> dict[str, Any]:
    """A step of one 512x512 image, with and without a LoRA on every linear layer of the transformer."""
    checkpoint = make_checkpoint("embedded", precision, "cpu")
    denoiser = Denoiser(checkpoint, DEFAULT_POOL)
    lora = load_random_lora(checkpoint.lora_slots, checkpoint.transformer, rank)
    without_lora, with_lora = (
        make_image_states(checkpoint, denoiser, SIZE, batch=1, steps=4, active_loras=[active])
        for active in (NO_LORAS, lora)
    )
    functions = {"without": partial(denoiser.step, without_lora), "with": partial(denoiser.step, with_lora)}
    times_s = measure_in_turns(functions, seconds, f"embedded step in {precision}")
    with _count_lora_share(checkpoint.transformer, rank) as lora_share:
        denoiser.step(without_lora)
    comparison = _compare(times_s, lora_share() + STEP_OVERHEAD_MARGIN)
    return comparison | {"share_of_linears": round(lora_share(), 4)}


def measure_flux_blocks(precision: Precision, rank: int, seconds: float) -> dict[str, Any]:
    """One double and one single block of FLUX.1's width with random weights, with and without a LoRA."""
    transformer = random_transformer({**FLUX1_DEV, "num_layers": 1, "num_single_layers": 1}, precision, CPU)
    slots = make_lora_slots(transformer, rank)
    active_loras = load_random_lora(slots, transformer, rank)
    blocks = {"double": transformer.transformer_blocks[0], "single": transformer.single_transformer_blocks[0]}
    inputs = _block_inputs(transformer)
    return {
        name: _measure_block(f"{name} block in {precision}", block, inputs, slots, active_loras, seconds)
        for name, block in blocks.items()
    }


def _measure_block(
    label: str, block: nn.Module, inputs: dict[str, Any], slots: LoraSlots, active_loras: ActiveLoras, seconds: float
) -> dict[str, Any]:
    """Compares the block with and without the LoRA, and also measures the LoRA's share of each forward pass.

    `added` is the median of that share. Numerator and denominator come from the same pass, so changes of the
    CPU's speed do not affect it.
    """
    run_block = partial(block, **inputs)
    shares: list[float] = []

    def run_with_lora() -> None:
        with slots.apply(slots.batch([active_loras.selection])), _hook_time(block) as hook_s:
            start_s = time.process_time()
            run_block()
            shares.append(hook_s() / (time.process_time() - start_s - hook_s()))

    with torch.no_grad():
        times_s = measure_in_turns({"without": run_block, "with": run_with_lora}, seconds, label)
    share = statistics.median(shares)
    return _compare(times_s, MAX_BLOCK_OVERHEAD) | {"added": round(share, 4), "holds": share <= MAX_BLOCK_OVERHEAD}


@contextmanager
def _hook_time(network: nn.Module) -> Iterator[Callable[[], float]]:
    """Measures the CPU seconds spent in the forward hooks of the network's linear layers, where LoRAs are applied."""
    total_s = start_s = 0.0

    def start(*_: Any) -> None:
        nonlocal start_s
        start_s = time.process_time()

    def stop(*_: Any) -> None:
        nonlocal total_s
        total_s += time.process_time() - start_s

    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    hooks = [linear.register_forward_hook(start, prepend=True) for linear in linears]
    hooks += [linear.register_forward_hook(stop) for linear in linears]
    try:
        yield lambda: total_s
    finally:
        for hook in hooks:
            hook.remove()


def _block_inputs(transformer: FluxTransformer2DModel) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def random_tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    width = transformer.inner_dim
    return {
        "hidden_states": random_tensor(1, IMAGE_TOKENS, width),
        "encoder_hidden_states": random_tensor(1, TEXT_TOKENS, width),
        "temb": random_tensor(1, width),
        "image_rotary_emb": transformer.pos_embed(torch.zeros(TEXT_TOKENS + IMAGE_TOKENS, 3)),
    }


def _compare(times_s: dict[str, list[float]], max_overhead: float) -> dict[str, Any]:
    overhead = relative_overhead(times_s["without"], times_s["with"])
    return {
        "extra": overhead,
        "most": round(max_overhead, 4),
        "holds": overhead["median"] <= max_overhead,
        "without_ms": round(1000 * min(times_s["without"]), 2),
        "with_ms": round(1000 * min(times_s["with"]), 2),
    }


@contextmanager
def _count_lora_share(network: nn.Module, rank: int) -> Iterator[Callable[[], float]]:
    """Counts the multiplications of all linear layers that run within the context.

    Yields a function that returns those of a LoRA of `rank` on every layer, as a share of those of the layers.
    """
    linear_count = lora_count = 0

    def count(linear: Any, inputs: tuple[Tensor, ...]) -> None:
        nonlocal linear_count, lora_count
        tokens = inputs[0].numel() // linear.in_features
        linear_count += tokens * linear.in_features * linear.out_features
        lora_count += tokens * rank * (linear.in_features + linear.out_features)

    hooks = [module.register_forward_pre_hook(count) for module in network.modules() if isinstance(module, nn.Linear)]
    try:
        yield lambda: lora_count / linear_count
    finally:
        for hook in hooks:
            hook.remove()
