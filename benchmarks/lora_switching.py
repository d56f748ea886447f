"""Measures the cost of several LoRAs: switching between two, mixing some in one batch, and the memory of many."""

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import DEFAULT_POOL, make_image_states
from benchmarks.geometry import make_checkpoint
from benchmarks.lora_fixtures import SIZE, acquire_lora, make_lora_slots, make_request, random_lora
from benchmarks.paired_timing import measure_in_turns, relative_overhead
from serve.engine.denoiser import Denoiser
from serve.engine.lora_manager import LoraManager
from serve.engine.request import Completed, GenerationRequest
from serve.engine.request_state import RequestState
from serve.engine.scheduler import Scheduler
from serve.engine.watchdog import Watchdog
from serve.settings import PoolSettings, Precision

MAX_SWITCH_STEPS = 2
"""A switch must take less time than this many steps."""
MEGABYTE = 1e6


def measure_switch(precision: Precision, rank: int, seconds: float) -> dict[str, Any]:
    """A switch between two LoRAs in host memory, relative to a step of one 512x512 image.

    `copied`: the device has slots for only one of them. `resident`: it has slots for both.
    """
    checkpoint = make_checkpoint("embedded", precision, "cpu")
    loras = {key: random_lora(checkpoint.transformer, rank, seed) for seed, key in enumerate("ab")}

    def switch_twice(manager: LoraManager) -> None:
        for key, lora in loras.items():
            manager.release(acquire_lora(manager, key, lora))

    denoiser = Denoiser(checkpoint, DEFAULT_POOL)
    functions: dict[str, Callable[[], Any]] = {
        "step": partial(denoiser.step, make_image_states(checkpoint, denoiser, SIZE, batch=1, steps=4)),
        "copied": partial(switch_twice, LoraManager(make_lora_slots(checkpoint.transformer, rank))),
        "resident": partial(switch_twice, LoraManager(make_lora_slots(checkpoint.transformer, 2 * rank))),
    }
    times_s = measure_in_turns(functions, seconds, f"switch in {precision}")
    best_s = {name: min(function_times_s) for name, function_times_s in times_s.items()}
    in_steps = {name: round(best_s[name] / 2 / best_s["step"], 4) for name in ("copied", "resident")}
    return {
        "in_steps": in_steps,
        "copied_ms": round(1000 * best_s["copied"] / 2, 3),
        "most": MAX_SWITCH_STEPS,
        "holds": in_steps["copied"] < MAX_SWITCH_STEPS,
    }


def measure_mixed_batches(
    precision: Precision, rank: int, seconds: float, steps: int, loras: int, images: int
) -> dict[str, Any]:
    """Throughput of simultaneous images with several LoRAs: `mixed` in one batch, or `apart` in a batch per LoRA.

    With the policy `turns`, batches form whatever they cost.
    """
    checkpoint = make_checkpoint("embedded", precision, "cpu")
    weights = {f"lora {number}": random_lora(checkpoint.transformer, rank, number) for number in range(loras)}
    names = [f"lora {image % loras}" for image in range(images)]
    requests = [make_request(steps, {name: weights[name]}, seeds=(image,)) for image, name in enumerate(names)]
    functions = {
        name: partial(
            _generate_all,
            Scheduler(
                checkpoint,
                PoolSettings(model="", batch_across_loras=batch_across_loras, scheduling_policy="turns"),
                Watchdog(),
            ),
            requests,
        )
        for name, batch_across_loras in (("mixed", True), ("apart", False))
    }
    times_s = measure_in_turns(functions, seconds, f"mixing in {precision}")
    images_per_s = {name: round(images / min(function_times_s), 3) for name, function_times_s in times_s.items()}
    return {"pictures_per_s": images_per_s, "extra_apart": relative_overhead(times_s["mixed"], times_s["apart"])}


def _generate_all(scheduler: Scheduler, requests: list[GenerationRequest]) -> None:
    events: list[Any] = []
    scheduler.add([RequestState(number, request, events.append) for number, request in enumerate(requests)], ())
    while scheduler.has_work:
        scheduler.step()
    assert sum(isinstance(event, Completed) for event in events) == len(requests)


def measure_memory(rank: int, loras: int, fitting: int) -> dict[str, Any]:
    """Peak memory of a process that uses each LoRA twice.

    `fitting`: the device has slots for `fitting` LoRAs. `all`: it has slots for all. `without`: no LoRA is used.
    """
    return {
        "fitting": _run_in_process(_measure_peak, rank, loras, fitting),
        "all": _run_in_process(_measure_peak, rank, loras, loras),
        "without": _run_in_process(_measure_peak, rank, 0, fitting),
    }


def _run_in_process(function: Callable[..., dict[str, Any]], *arguments: int) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def _measure_peak(rank: int, loras: int, fitting: int) -> dict[str, Any]:
    """Creates the weights of each LoRA for one request only, because the service keeps them in a shared store."""
    torch.set_num_threads(1)
    checkpoint = make_checkpoint("embedded", "bf16", "cpu")
    slots = make_lora_slots(checkpoint.transformer, fitting * rank)
    scheduler = Scheduler(replace(checkpoint, lora_slots=slots), PoolSettings(model=""), Watchdog())
    for number in [*range(loras), *range(loras)] or [0]:
        weights = {f"lora {number}": random_lora(checkpoint.transformer, rank, number)} if loras else {}
        _generate_all(scheduler, [make_request(1, weights, size=(64, 64))])
        if number % 10 == 0:
            print(f"memory: LoRA {number} of {loras}, {fitting} fit on the device", file=sys.stderr, flush=True)
    return {
        "peak_mb": round(_peak_bytes() / MEGABYTE, 1),
        "bank_mb": round((slots.count + 1) * slots.slot_bytes / MEGABYTE, 1),
        "copies": scheduler.loras.loads,
    }


def _peak_bytes() -> int:
    """Peak resident memory of this process. `getrusage` is not used: its peak includes that of the parent process."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
