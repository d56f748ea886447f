"""What a LoRA that lies on the device adds to a step: of the embedded model, and of FLUX's own blocks."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from benchmarks.engine import make_drafts
from benchmarks.geometry import FLUX1_DEV, make_checkpoint, random_transformer
from benchmarks.lora_fixtures import SIZE, make_bank, resident
from benchmarks.paired_timing import extra, take_turns
from serve.engine.denoiser import Denoiser
from serve.engine.lora_manager import ActiveLoras
from serve.engine.lora_slots import LoraSlots
from serve.settings import Precision

POINTS_BESIDE_SHARE = 0.20
MOST_OF_A_BLOCK = 0.05
TEXT_TOKENS, PICTURE_TOKENS = 128, 256
CPU = torch.device("cpu")


def embedded_step(precision: Precision, rank: int, seconds: float) -> dict[str, Any]:
    """A step of one 512x512 image, with and without a LoRA on every linear of the transformer."""
    checkpoint = make_checkpoint("embedded", precision, "cpu")
    stepper = Denoiser(checkpoint)
    plain, adapted = (make_drafts(checkpoint, SIZE, batch=1, steps=4) for _ in range(2))
    adapted[0].active_loras = resident(checkpoint.lora_slots, checkpoint.transformer, rank)
    ways = {"without": partial(stepper.step, plain), "with": partial(stepper.step, adapted)}
    spent_s = take_turns(ways, seconds, f"embedded step in {precision}")
    with _share_of_linears(checkpoint.transformer, rank) as share:
        stepper.step(plain)
    return _verdict(spent_s, share() + POINTS_BESIDE_SHARE) | {"share_of_linears": round(share(), 4)}


def true_blocks(precision: Precision, rank: int, seconds: float) -> dict[str, Any]:
    """One double and one single block as wide as FLUX's, with random weights."""
    transformer = random_transformer({**FLUX1_DEV, "num_layers": 1, "num_single_layers": 1}, precision, CPU)
    bank = make_bank(transformer, rank)
    mix = resident(bank, transformer, rank)
    blocks = {"double": transformer.transformer_blocks[0], "single": transformer.single_transformer_blocks[0]}
    inputs = _inputs(transformer)
    return {
        name: _block(f"{name} block in {precision}", block, inputs, bank, mix, seconds)
        for name, block in blocks.items()
    }


def _block(
    what: str, block: nn.Module, inputs: dict[str, Any], bank: LoraSlots, mix: ActiveLoras, seconds: float
) -> dict[str, Any]:
    """Beside the two compared in turns, what the additions took of each pass: a machine that changes its speed from
    one second to the next changes both sides of that alike."""
    run = partial(block, **inputs)
    shares: list[float] = []

    def adapted() -> None:
        with bank.apply([mix.selection]), _clocked(block) as added_s:
            begun = time.process_time()
            run()
            shares.append(added_s() / (time.process_time() - begun - added_s()))

    with torch.no_grad():
        spent_s = take_turns({"without": run, "with": adapted}, seconds, what)
    share = statistics.median(shares)
    return _verdict(spent_s, MOST_OF_A_BLOCK) | {"added": round(share, 4), "holds": share <= MOST_OF_A_BLOCK}


@contextmanager
def _clocked(network: nn.Module) -> Iterator[Callable[[], float]]:
    """The processor's seconds that hooks took beside the linears of a network."""
    added_s = begun_s = 0.0

    def begin(*_: Any) -> None:
        nonlocal begun_s
        begun_s = time.process_time()

    def end(*_: Any) -> None:
        nonlocal added_s
        added_s += time.process_time() - begun_s

    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    hooks = [linear.register_forward_hook(begin, prepend=True) for linear in linears]
    hooks += [linear.register_forward_hook(end) for linear in linears]
    try:
        yield lambda: added_s
    finally:
        for hook in hooks:
            hook.remove()


def _inputs(transformer: FluxTransformer2DModel) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    width = transformer.inner_dim
    return {
        "hidden_states": random(1, PICTURE_TOKENS, width),
        "encoder_hidden_states": random(1, TEXT_TOKENS, width),
        "temb": random(1, width),
        "image_rotary_emb": transformer.pos_embed(torch.zeros(TEXT_TOKENS + PICTURE_TOKENS, 3)),
    }


def _verdict(spent_s: dict[str, list[float]], most: float) -> dict[str, Any]:
    cost = extra(spent_s["without"], spent_s["with"])
    return {
        "extra": cost,
        "most": round(most, 4),
        "holds": cost["median"] <= most,
        "without_ms": round(1000 * min(spent_s["without"]), 2),
        "with_ms": round(1000 * min(spent_s["with"]), 2),
    }


@contextmanager
def _share_of_linears(network: nn.Module, rank: int) -> Iterator[Callable[[], float]]:
    """Counts multiplications within: those of a LoRA on every linear, as a share of those of the linears."""
    linears = added = 0

    def count(linear: Any, inputs: tuple[Tensor, ...]) -> None:
        nonlocal linears, added
        tokens = inputs[0].numel() // linear.in_features
        linears += tokens * linear.in_features * linear.out_features
        added += tokens * rank * (linear.in_features + linear.out_features)

    hooks = [module.register_forward_pre_hook(count) for module in network.modules() if isinstance(module, nn.Linear)]
    try:
        yield lambda: added / linears
    finally:
        for hook in hooks:
            hook.remove()
