"""Runs generation requests through an engine, as a replica does, and measures their time and memory."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn

from serve.engine.engine import Engine
from serve.engine.request import (
    Completed,
    EngineEvent,
    FinalEvent,
    GenerationRequest,
    ImageReady,
    LoraRequest,
)
from serve.lora.weights import LoraWeights, LowRank, pack, unpack
from serve.model_specs import Size

GUIDANCE = 3.5
LORA_SCALE = 0.8
PROMPT = "a red sailboat on a calm sea"
_NOISE_VALUES = 2**22
_STANDARD_DEVIATION = 0.02


class RequestFailed(Exception):
    """A request did not end with `Completed`; the log has the cause."""


@dataclass(frozen=True)
class Run:
    """Requests that ran to their end."""

    seconds: float
    """From the submission until all images are on the host."""
    ends: Sequence[Completed]


def generate(engine: Engine, requests: Sequence[GenerationRequest]) -> Run:
    """Runs requests that start together. Raises `RequestFailed` if one fails."""
    events: SimpleQueue[EngineEvent] = SimpleQueue()
    finals: list[EngineEvent] = []
    with _pause(engine):
        start_s = time.perf_counter()
        for request in requests:
            engine.submit(request, events.put)
    while len(finals) < len(requests):
        event = events.get()
        if isinstance(event, ImageReady):
            event.to_host()
        elif isinstance(event, FinalEvent):
            finals.append(event)
    seconds = time.perf_counter() - start_s
    ends = [event for event in finals if isinstance(event, Completed)]
    if len(ends) < len(requests):
        raise RequestFailed(f"{len(requests) - len(ends)} of {len(requests)} requests failed")
    return Run(seconds, ends)


@contextmanager
def _pause(engine: Engine) -> Iterator[None]:
    """Within the context, the engine's thread waits. Requests that are submitted meanwhile start together after it."""
    paused, resumed = threading.Event(), threading.Event()

    def wait() -> None:
        paused.set()
        resumed.wait()

    engine.run_on_device(wait)
    paused.wait()
    try:
        yield
    finally:
        resumed.set()


def make_request(
    size: Size,
    steps: int,
    seeds: tuple[int, ...] = (0,),
    loras: Mapping[str, LoraWeights] | None = None,
    scale: float = LORA_SCALE,
    prompt: str = PROMPT,
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


def make_lora(transformer: nn.Module, rank: int, seed: int) -> LoraWeights:
    """A random LoRA on every linear layer of the transformer, in float16 as most published LoRAs are.

    Its matrices are views of one block, as in the service. The values repeat after `_NOISE_VALUES`, because making
    hundreds of millions of random numbers takes seconds.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = (_STANDARD_DEVIATION * torch.randn(_NOISE_VALUES, generator=generator)).half()

    def matrix(rows: int, columns: int) -> Tensor:
        copies = -(-rows * columns // _NOISE_VALUES)
        # Small matrices share the memory of the noise until they are packed.
        values = noise if copies == 1 else noise.repeat(copies)
        return values[: rows * columns].view(rows, columns)

    layers = {
        path: LowRank(matrix(rank, linear.in_features), matrix(linear.out_features, rank))
        for path, linear in transformer.named_modules()
        if isinstance(linear, nn.Linear)
    }
    return unpack(pack(LoraWeights(transformer=layers, clip={})))


def size_name(size: Size) -> str:
    return "x".join(map(str, size))


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: that of torch on a GPU, that of the process on a CPU.

    `getrusage` is not used: its peak includes that of the parent process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def peak_gb(device: torch.device) -> float:
    return round(peak_memory_bytes(device) / 1e9, 3)
