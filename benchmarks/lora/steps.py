"""Measures how much a resident LoRA slows down a step of the embedded model and a block of FLUX.1's size."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from benchmarks.engine import DEFAULT_POOL, make_image_states
from benchmarks.geometry import FLUX1_DEV, make_checkpoint, random_transformer
from benchmarks.lora.fixtures import SIZE, load_random_lora, make_lora_slots
from benchmarks.lora.paired_timing import measure_in_turns, relative_overhead
from serve.engine.attention import native_attention
from serve.engine.block_runner import EagerBlocks
from serve.engine.denoiser import Denoiser
from serve.engine.flux_blocks import DOUBLE_VECTORS, SINGLE_VECTORS, Rotary
from serve.engine.lora_manager import NO_LORAS
from serve.engine.lora_products import BatchLoras
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
    with _LinearCounter(rank) as counter:
        denoiser.step(without_lora)
    comparison = _compare(times_s, counter.lora_share + STEP_OVERHEAD_MARGIN)
    return comparison | {"share_of_linears": round(counter.lora_share, 4)}


def measure_flux_blocks(precision: Precision, rank: int, seconds: float) -> dict[str, Any]:
    """One double and one single block of FLUX.1's width with random weights, with and without a LoRA."""
    transformer = random_transformer({**FLUX1_DEV, "num_layers": 1, "num_single_layers": 1}, precision, CPU)
    slots = make_lora_slots(transformer, rank)
    loras = slots.batch([load_random_lora(slots, transformer, rank).selection])
    blocks = EagerBlocks(transformer, slots, native_attention)
    generator = torch.Generator().manual_seed(0)
    width = transformer.inner_dim

    def random_tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(transformer.dtype)

    image, text = random_tensor(1, IMAGE_TOKENS, width), random_tensor(1, TEXT_TOKENS, width)
    rotary = Rotary(*transformer.pos_embed(torch.zeros(TEXT_TOKENS + IMAGE_TOKENS, 3)))
    double = partial(
        blocks.double, transformer.transformer_blocks[0], image, text, random_tensor(1, DOUBLE_VECTORS * width), rotary
    )
    single = partial(
        blocks.single,
        transformer.single_transformer_blocks[0],
        torch.cat((text, image), dim=1),
        random_tensor(1, SINGLE_VECTORS * width),
        rotary,
    )
    return {
        name: _measure_block(f"{name} block in {precision}", run_block, loras, seconds)
        for name, run_block in (("double", double), ("single", single))
    }


@torch.no_grad()
def _measure_block(
    label: str, run_block: Callable[[BatchLoras | None], Any], loras: BatchLoras | None, seconds: float
) -> dict[str, Any]:
    functions = {"without": partial(run_block, None), "with": partial(run_block, loras)}
    return _compare(measure_in_turns(functions, seconds, label), MAX_BLOCK_OVERHEAD)


def _compare(times_s: dict[str, list[float]], max_overhead: float) -> dict[str, Any]:
    overhead = relative_overhead(times_s["without"], times_s["with"])
    return {
        "extra": overhead,
        "limit": round(max_overhead, 4),
        "within_limit": overhead["median"] <= max_overhead,
        "without_ms": round(1000 * min(times_s["without"]), 2),
        "with_ms": round(1000 * min(times_s["with"]), 2),
    }


class _LinearCounter(TorchFunctionMode):
    """Counts the multiplications of all linear layers that run within the context."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank
        self._linear = self._lora = 0

    @property
    def lora_share(self) -> float:
        """Those of a LoRA on every layer, as a share of those of the layers."""
        return self._lora / self._linear

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is linear:
            inputs, weight = args[:2]
            outputs, width = weight.shape
            tokens = inputs.numel() // width
            self._linear += tokens * width * outputs
            self._lora += tokens * self._rank * (width + outputs)
        return func(*args, **kwargs or {})
