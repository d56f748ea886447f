"""Measures the time of a step by size, batch size and text length, and with each optimisation turned off."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

from benchmarks.engine_runs import make_lora, size_name
from benchmarks.gpu_check.scale import SCALES, Scale, make_pool
from benchmarks.gpu_check.step_benchmark import Row, StepBenchmark, measure_batches
from serve.model_specs import Size, VariantName
from serve.settings import Precision

BATCHES = (1, 4, 2, 8)
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "compile": {"compile": ()},
    "fp8_kernel": {"fp8_kernel": "quanto"},
    "cuda_graphs": {"cuda_graphs": False},
    "run_ahead": {"run_ahead": False},
    "attention": {"attention": "flash"},
    "precompute_modulation": {"precompute_modulation": False},
    "lora_product": {"lora_product": "per_image"},
}
"""The settings of a pool that turn each optimisation off alone; `none` leaves all of them on."""


def measure_steps(scale_name: str, variant: VariantName, precision: Precision) -> Iterator[Row]:
    """A row for each size and batch size, the most important first."""
    scale = SCALES[scale_name]
    model, pool = make_pool(scale, variant, precision)
    labels = {"model": variant, "precision": precision, "text_tokens": model.max_sequence_length}
    with closing(StepBenchmark(scale, model, pool)) as benchmark:
        yield from measure_batches(benchmark, labels, _batches(scale) if variant == "dev" else _few_batches(scale))


def _batches(scale: Scale) -> list[tuple[Size, int]]:
    """By batch size, and the large size before the others. Batches of too many pixels are left out."""
    order = (scale.large, scale.medium, scale.small, scale.sizes[3])
    return [(size, batch) for batch in BATCHES for size in order if batch * size[0] * size[1] <= scale.max_pixels]


def _few_batches(scale: Scale) -> list[tuple[Size, int]]:
    return [(scale.large, 1), (scale.medium, 1), (scale.large, 4)]


def measure_ablation(scale_name: str, precision: Precision, switch: str) -> Iterator[Row]:
    """Rows of steps with one optimisation turned off. `none` measures without and with a LoRA, to compare with."""
    scale = SCALES[scale_name]
    ranks = {"none": (0, 16), "lora_product": (16,)}.get(switch, (0,))
    with closing(StepBenchmark(scale, *make_pool(scale, "dev", precision, **SWITCHES[switch]))) as benchmark:
        for rank in ranks:
            loras = [{"resident": make_lora(benchmark.checkpoint.transformer, rank, 0)}] if rank else []
            for size in (scale.large, scale.medium):
                yield {
                    "topic": "ablation",
                    "precision": precision,
                    "switch": switch,
                    "size": size_name(size),
                    "rank": rank,
                    **benchmark.measure_step(size, 1, loras),
                }
