"""Measures the time of a step with the engine of a replica and random weights."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from benchmarks.engine_runs import RequestFailed, Run, generate, make_request, peak_gb, size_name
from benchmarks.gpu_check.scale import Scale, make_checkpoint
from serve.engine.checkpoint import Checkpoint
from serve.engine.cuda_graphs import CAPTURE_USES
from serve.engine.engine import Engine
from serve.engine.request import GenerationRequest
from serve.lora.weights import LoraWeights
from serve.model_specs import Size
from serve.settings import ModelSettings, PoolSettings

Row = dict[str, Any]
WARMUP_STEPS = CAPTURE_USES
"""Until the CUDA graph of a step is captured."""
BASE_STEPS = 2


class StepBenchmark:
    """A running engine over a checkpoint with random weights."""

    def __init__(self, scale: Scale, model: ModelSettings, pool: PoolSettings) -> None:
        # Only this policy runs every batch as it is requested; the other one may finish large images one by one.
        # Nothing but the transformer is measured, so nothing else is compiled or quantized.
        changes: dict[str, Any] = {"scheduling_policy": "turns", "quantize_t5": False}
        if scale.device == "cuda" and pool.compile is None:
            changes["compile"] = ("transformer",)
        pool = pool.model_copy(update=changes)
        self.scale = scale
        self.checkpoint: Checkpoint = make_checkpoint(scale, model, pool)
        self._engine = Engine(self.checkpoint, pool)
        self._engine.start()

    def close(self) -> None:
        """Stops the engine."""
        self._engine.stop()

    def run(self, requests: Sequence[GenerationRequest]) -> Run:
        """Runs requests that start together. Raises `RequestFailed` if one fails."""
        return generate(self._engine, requests)

    def run_on_device(self, action: Callable[[], object]) -> None:
        """Calls `action` on the engine's thread."""
        self._engine.run_on_device(action).result()

    def measure_step(self, size: Size, batch: int, loras: Sequence[Mapping[str, LoraWeights]] = ()) -> Row:
        """`step_ms`: milliseconds that one more step of `batch` images takes, from two runs that differ in their steps.

        Everything that a run does once, such as text encoding and decoding, cancels out. `mean_batch` is smaller than
        `batch` if the images did not share all passes, as after running out of memory. `first_s`: seconds of the first
        run, which compiles what is not compiled yet. `loras` has those of each image; without it, no image has any.
        """
        first = self.run(_make_batch(size, batch, WARMUP_STEPS, loras))
        short = self.run(_make_batch(size, batch, BASE_STEPS, loras))
        long = self.run(_make_batch(size, batch, BASE_STEPS + self.scale.timed_steps, loras))
        return {
            "step_ms": round(1000 * (long.seconds - short.seconds) / self.scale.timed_steps, 3),
            "first_s": round(first.seconds, 3),
            "mean_batch": min(end.mean_batch for end in long.ends),
            "decode_ms": median_ms([end.stages_ms for end in long.ends], "decode"),
        }


def _make_batch(
    size: Size, batch: int, steps: int, loras: Sequence[Mapping[str, LoraWeights]]
) -> list[GenerationRequest]:
    if not loras:
        return [make_request(size, steps, seeds=tuple(range(batch)))]
    return [make_request(size, steps, seeds=(seed,), loras=each) for seed, each in enumerate(loras)]


def median_ms(stages: Sequence[Mapping[str, float]], stage: str) -> float:
    return round(statistics.median(each[stage] for each in stages), 3)


def measure_batches(benchmark: StepBenchmark, labels: Row, batches: Sequence[tuple[Size, int]]) -> Iterator[Row]:
    """A row with the time of a step for each size and batch. One that runs out of memory has the key `error`."""
    for size, batch in batches:
        row = {"topic": "step", **labels, "size": size_name(size), "batch": batch}
        try:
            yield row | benchmark.measure_step(size, batch) | {"peak_gb": peak_gb(benchmark.checkpoint.device)}
        except (torch.OutOfMemoryError, RequestFailed) as error:
            yield row | {"error": f"{type(error).__name__}: {error}"[:200]}
