"""Runs generation requests through the engine's scheduler and measures steps, stages and memory."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.scale import Scale, make_checkpoint
from serve.engine.checkpoint import Checkpoint
from serve.engine.cuda_graphs import CAPTURE_USES
from serve.engine.device import synchronize
from serve.engine.lora_staging import LoraStager
from serve.engine.request import Completed, GenerationRequest, Listener, LoraRequest
from serve.engine.request_state import RequestState
from serve.engine.scheduler import Scheduler
from serve.engine.watchdog import Watchdog
from serve.lora.weights import LoraWeights
from serve.model_specs import Size
from serve.settings import ModelSettings, PoolSettings

Row = dict[str, Any]
WARMUP_STEPS = CAPTURE_USES
"""After these, CUDA graphs are captured."""
BASE_STEPS = 2
GUIDANCE = 3.5
LORA_SCALE = 0.8


class RequestFailed(Exception):
    """A request did not end with `Completed`; the log has the cause."""


class Bench:
    """A scheduler over a checkpoint with random weights. All of its work runs on the calling thread."""

    def __init__(self, scale: Scale, model: ModelSettings, pool: PoolSettings) -> None:
        # Only this policy runs every batch as it is requested; the other one may finish large images one by one.
        # Nothing but the transformer is measured, so nothing else is compiled or quantized.
        changes: dict[str, Any] = {"scheduling_policy": "turns", "quantize_t5": False}
        if scale.device == "cuda" and pool.compile is None:
            changes["compile"] = ("transformer",)
        self.pool = pool.model_copy(update=changes)
        self.scale = scale
        self.checkpoint: Checkpoint = make_checkpoint(scale, model, self.pool)
        torch.set_num_threads(self.pool.num_threads or 1)
        self._scheduler = Scheduler(self.checkpoint, self.pool, Watchdog())
        self._lora_stager = LoraStager(self._scheduler.loras)
        self._numbers = iter(range(2**31))

    def run(self, requests: Sequence[GenerationRequest]) -> list[Completed]:
        """Runs requests that start together. Raises `RequestFailed` if one fails."""
        ends: list[Completed] = []

        def listen(event: object) -> None:
            if isinstance(event, Completed):
                ends.append(event)

        self._scheduler.add([self._make_state(request, listen) for request in requests], ())
        while self._scheduler.has_work:
            self._scheduler.step()
        synchronize(self.checkpoint.device)
        if len(ends) != len(requests):
            raise RequestFailed(f"{len(requests) - len(ends)} of {len(requests)} requests failed")
        return ends

    def _make_state(self, request: GenerationRequest, listen: Listener) -> RequestState:
        """Its LoRAs are staged, as those of a request that waits a moment in the engine."""
        staging = self._lora_stager.start(request.lora_weights)
        wait(staging.loras.values())
        return RequestState(next(self._numbers), request, listen, staging=staging)

    def measure_step(self, size: Size, batch: int, loras: Sequence[Mapping[str, LoraWeights]] = ()) -> Row:
        """`step_ms`: milliseconds that one more step of `batch` images takes, from two runs that differ in their steps.

        Everything that a run does once, such as text encoding and decoding, cancels out. `mean_batch` is smaller than
        `batch` if the images did not share all passes, as after running out of memory. `loras` has those of each
        image; without it, no image has any.
        """
        self.run(self._batch(size, batch, WARMUP_STEPS, loras))
        short_s, _ = self._timed_run(self._batch(size, batch, BASE_STEPS, loras))
        long_s, ends = self._timed_run(self._batch(size, batch, BASE_STEPS + self.scale.timed_steps, loras))
        step_ms = 1000 * (long_s - short_s) / self.scale.timed_steps
        return {
            "step_ms": round(step_ms, 3),
            "mean_batch": min(end.mean_batch for end in ends),
            "decode_ms": median_ms([end.stages_ms for end in ends], "decode"),
        }

    def _batch(
        self, size: Size, batch: int, steps: int, loras: Sequence[Mapping[str, LoraWeights]]
    ) -> list[GenerationRequest]:
        if not loras:
            return [make_request(size, steps, seeds=tuple(range(batch)))]
        return [make_request(size, steps, seeds=(seed,), loras=each) for seed, each in enumerate(loras)]

    def _timed_run(self, requests: Sequence[GenerationRequest]) -> tuple[float, list[Completed]]:
        start_s = time.perf_counter()
        ends = self.run(requests)
        return time.perf_counter() - start_s, ends


def make_request(
    size: Size,
    steps: int,
    seeds: tuple[int, ...] = (0,),
    loras: Mapping[str, LoraWeights] | None = None,
    scale: float = LORA_SCALE,
    prompt: str = "a red sailboat on a calm sea",
    **fields: Any,
) -> GenerationRequest:
    """A text-to-image request that uses all of `loras`."""
    return GenerationRequest(
        prompt=prompt,
        size=size,
        steps=steps,
        seeds=seeds,
        guidance=GUIDANCE,
        loras=tuple(LoraRequest(key, scale) for key in loras or {}),
        lora_weights=loras or {},
        **fields,
    )


def median_ms(stages: Sequence[Mapping[str, float]], stage: str) -> float:
    return round(statistics.median(each[stage] for each in stages), 3)


def rows_of_batches(bench: Bench, labels: Row, batches: Sequence[tuple[Size, int]]) -> Iterator[Row]:
    """A row with the time of a step for each size and batch. One that runs out of memory has the key `error`."""
    for size, batch in batches:
        row = {"topic": "step", **labels, "size": size_name(size), "batch": batch}
        try:
            yield row | bench.measure_step(size, batch) | {"peak_gb": peak_gb(bench.checkpoint.device)}
        except (torch.OutOfMemoryError, RequestFailed) as error:
            yield row | {"error": f"{type(error).__name__}: {error}"[:200]}


def size_name(size: Size) -> str:
    return "x".join(map(str, size))


def peak_gb(device: torch.device) -> float:
    """Peak memory so far: that of torch on a GPU, that of the process on a CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return round(int(line.split()[1]) * 1024 / 1e9, 3)
