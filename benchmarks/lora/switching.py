"""Measures the cost of several LoRAs: switching between two, mixing some in one batch, and the memory of many."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.engine import DEFAULT_POOL, make_image_states
from benchmarks.engine_runs import generate, make_lora, make_request, peak_memory_bytes
from benchmarks.geometry import make_checkpoint
from benchmarks.lora.fixtures import SIZE, acquire_lora, make_lora_slots
from benchmarks.lora.paired_timing import measure_in_turns, relative_overhead
from benchmarks.report import print_progress
from serve.engine.checkpoint import Checkpoint
from serve.engine.denoiser import Denoiser
from serve.engine.engine import Engine
from serve.engine.lora_manager import LoraManager
from serve.settings import PoolSettings, Precision

MAX_SWITCH_STEPS = 2
"""A switch must take less time than this many steps."""
MEGABYTE = 1e6


def measure_switch(precision: Precision, rank: int, seconds: float) -> dict[str, Any]:
    """A switch between two LoRAs in host memory, relative to a step of one 512x512 image.

    `copied`: the device has slots for only one of them. `resident`: it has slots for both.
    """
    checkpoint = make_checkpoint("embedded", precision, "cpu")
    loras = {key: make_lora(checkpoint.transformer, rank, seed) for seed, key in enumerate("ab")}

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
        "limit": MAX_SWITCH_STEPS,
        "within_limit": in_steps["copied"] < MAX_SWITCH_STEPS,
    }


def measure_mixed_batches(
    precision: Precision, rank: int, seconds: float, steps: int, loras: int, images: int
) -> dict[str, Any]:
    """Throughput of simultaneous images with several LoRAs: `mixed` in one batch, or `apart` in a batch per LoRA.

    With the policy `turns`, batches form whatever they cost.
    """
    checkpoint = make_checkpoint("embedded", precision, "cpu")
    weights = {f"lora {number}": make_lora(checkpoint.transformer, rank, number) for number in range(loras)}
    names = [f"lora {image % loras}" for image in range(images)]
    requests = [make_request(SIZE, steps, (image,), {name: weights[name]}) for image, name in enumerate(names)]
    with ExitStack() as engines:
        functions = {
            name: partial(
                generate,
                engines.enter_context(_engine(checkpoint, batch_across_loras=shared, scheduling_policy="turns")),
                requests,
            )
            for name, shared in (("mixed", True), ("apart", False))
        }
        times_s = measure_in_turns(functions, seconds, f"mixing in {precision}")
    images_per_s = {name: round(images / min(function_times_s), 3) for name, function_times_s in times_s.items()}
    return {"images_per_s": images_per_s, "extra_apart": relative_overhead(times_s["mixed"], times_s["apart"])}


@contextmanager
def _engine(checkpoint: Checkpoint, **changes: Any) -> Iterator[Engine]:
    """A running engine with one CPU thread."""
    engine = Engine(checkpoint, PoolSettings(model="", num_threads=1, **changes))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


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
    with _engine(replace(checkpoint, lora_slots=slots)) as engine:
        for number in [*range(loras), *range(loras)] or [0]:
            weights = {f"lora {number}": make_lora(checkpoint.transformer, rank, number)} if loras else {}
            generate(engine, [make_request((64, 64), 1, loras=weights)])
            if number % 10 == 0:
                print_progress(f"memory: LoRA {number} of {loras}, {fitting} fit on the device")
        copies = engine.stats.lora_loads
    return {
        "peak_mb": round(peak_memory_bytes(checkpoint.device) / MEGABYTE, 1),
        "slots_mb": round((slots.count + 1) * slots.slot_bytes / MEGABYTE, 1),
        "copies": copies,
    }
