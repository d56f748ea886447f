"""What it costs to change LoRAs: a switch, a pass of different ones, and the memory of many of which few fit."""

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import make_drafts
from benchmarks.geometry import make_checkpoint
from benchmarks.lora_fixtures import SIZE, make_bank, make_job, mix_of, random_lora
from benchmarks.paired_timing import extra, take_turns
from serve.engine.denoiser import Denoiser
from serve.engine.lora_manager import LoraManager
from serve.engine.request import Completed, GenerationRequest
from serve.engine.request_state import RequestState
from serve.engine.scheduler import Scheduler
from serve.engine.watchdog import Watchdog
from serve.settings import PoolSettings, Precision

MOST_STEPS_OF_A_SWITCH = 2
MEGABYTE = 1e6


def switch(precision: Precision, rank: int, seconds: float) -> dict[str, Any]:
    """From one LoRA at hand to another, in steps of one 512x512 image: with room for one of them, and for both."""
    checkpoint = make_checkpoint("embedded", precision, "cpu")
    loras = {key: random_lora(checkpoint.transformer, rank, seed) for seed, key in enumerate("ab")}

    def there_and_back(adapters: LoraManager) -> None:
        for key, lora in loras.items():
            adapters.release(mix_of(adapters, key, lora))

    ways: dict[str, Callable[[], Any]] = {
        "step": partial(Denoiser(checkpoint).step, make_drafts(checkpoint, SIZE, batch=1, steps=4)),
        "copied": partial(there_and_back, LoraManager(make_bank(checkpoint.transformer, rank))),
        "resident": partial(there_and_back, LoraManager(make_bank(checkpoint.transformer, 2 * rank))),
    }
    best_s = {name: min(spent_s) for name, spent_s in take_turns(ways, seconds, f"switch in {precision}").items()}
    in_steps = {name: round(best_s[name] / 2 / best_s["step"], 4) for name in ("copied", "resident")}
    return {
        "in_steps": in_steps,
        "copied_ms": round(1000 * best_s["copied"] / 2, 3),
        "most": MOST_STEPS_OF_A_SWITCH,
        "holds": in_steps["copied"] < MOST_STEPS_OF_A_SWITCH,
    }


def mixing(precision: Precision, rank: int, seconds: float, steps: int, loras: int, images: int) -> dict[str, Any]:
    """Pictures that came at once, of several LoRAs: all in one pass, against one pass for each LoRA."""
    checkpoint = make_checkpoint("embedded", precision, "cpu")
    weights = {f"lora {number}": random_lora(checkpoint.transformer, rank, number) for number in range(loras)}
    names = [f"lora {image % loras}" for image in range(images)]
    jobs = [make_job(steps, {name: weights[name]}, seeds=(image,)) for image, name in enumerate(names)]
    ways = {
        "mixed": partial(
            _draw, Scheduler(checkpoint, PoolSettings(model="", batch_across_loras=True), Watchdog()), jobs
        ),
        "apart": partial(
            _draw, Scheduler(checkpoint, PoolSettings(model="", batch_across_loras=False), Watchdog()), jobs
        ),
    }
    spent_s = take_turns(ways, seconds, f"mixing in {precision}")
    rates = {name: round(images / min(times_s), 3) for name, times_s in spent_s.items()}
    return {"pictures_per_s": rates, "extra_apart": extra(spent_s["mixed"], spent_s["apart"])}


def _draw(loop: Scheduler, jobs: list[GenerationRequest]) -> None:
    ends: list[Any] = []
    loop.add([RequestState(number, job, ends.append) for number, job in enumerate(jobs)], ())
    while loop.has_work:
        loop.step()
    assert sum(isinstance(event, Completed) for event in ends) == len(jobs)


def memory(rank: int, loras: int, fitting: int) -> dict[str, Any]:
    """Peak memory of a process that draws with each LoRA twice: with room for some, for all, and without any."""
    return {
        "fitting": _in_a_process(_peak, rank, loras, fitting),
        "all": _in_a_process(_peak, rank, loras, loras),
        "without": _in_a_process(_peak, rank, 0, fitting),
    }


def _in_a_process(function: Callable[..., dict[str, Any]], *arguments: int) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def _peak(rank: int, loras: int, fitting: int) -> dict[str, Any]:
    """Each LoRA is there only while it is needed, as it would be in a store that others share."""
    torch.set_num_threads(1)
    checkpoint = make_checkpoint("embedded", "bf16", "cpu")
    bank = make_bank(checkpoint.transformer, fitting * rank)
    loop = Scheduler(replace(checkpoint, lora_slots=bank), PoolSettings(model=""), Watchdog())
    for number in [*range(loras), *range(loras)] or [0]:
        weights = {f"lora {number}": random_lora(checkpoint.transformer, rank, number)} if loras else {}
        _draw(loop, [make_job(1, weights, size=(64, 64))])
        if number % 10 == 0:
            print(f"memory: LoRA {number} of {loras}, room for {fitting}", file=sys.stderr, flush=True)
    return {
        "peak_mb": round(_peak_bytes() / MEGABYTE, 1),
        "bank_mb": round((bank.count + 1) * bank.slot_bytes / MEGABYTE, 1),
        "copies": loop.loras.loads,
    }


def _peak_bytes() -> int:
    """Of this process's memory. What the system counts for `getrusage` begins with what the parent had."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
