"""Measures what LoRAs cost: request latency, step time, switching, batches with several LoRAs, and memory.

scripts/bench lora
scripts/bench lora --parts blocks --seconds 60
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.lora import latency, steps, switching
from benchmarks.report import report, stop_on_sigterm
from serve.settings import Precision

PRECISIONS: tuple[Precision, ...] = ("bf16", "fp8")


def _for_each_precision(measure: Callable[..., Any], *arguments: float) -> dict[str, Any]:
    return {precision: measure(precision, *arguments) for precision in PRECISIONS}


def _steps(options: argparse.Namespace) -> dict[str, Any]:
    return _for_each_precision(steps.measure_embedded_step, options.rank, options.seconds)


def _blocks(options: argparse.Namespace) -> dict[str, Any]:
    return _for_each_precision(steps.measure_flux_blocks, options.rank, options.seconds)


def _switch(options: argparse.Namespace) -> dict[str, Any]:
    return _for_each_precision(switching.measure_switch, options.rank, options.seconds)


def _mixing(options: argparse.Namespace) -> dict[str, Any]:
    return _for_each_precision(
        switching.measure_mixed_batches,
        options.rank,
        options.seconds,
        options.steps,
        options.mixed_loras,
        options.images,
    )


def _memory(options: argparse.Namespace) -> dict[str, Any]:
    return switching.measure_memory(options.memory_rank, options.loras, options.fitting)


def _latency(options: argparse.Namespace) -> dict[str, Any]:
    return latency.measure_latency(options.rank, options.rounds)


PARTS: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "latency": _latency,
    "steps": _steps,
    "blocks": _blocks,
    "switch": _switch,
    "mixing": _mixing,
    "memory": _memory,
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse_options(arguments)
    stop_on_sigterm()
    torch.set_num_threads(1)
    question = "what do LoRAs cost in latency, step time, switching, mixed batches and memory?"
    report(question, vars(options), {part: PARTS[part](options) for part in options.parts})


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lora", description=str(__doc__).splitlines()[0])
    parser.add_argument("--parts", choices=tuple(PARTS), nargs="+", default=list(PARTS), help="what to measure")
    parser.add_argument("--rank", type=int, default=16, help="rank of the LoRAs of all parts but `memory`")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of `latency`, with four requests each")
    parser.add_argument("--seconds", type=float, default=30, help="duration of each comparison")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps of each image in `mixing`")
    parser.add_argument("--mixed-loras", type=int, default=4, help="number of different LoRAs in `mixing`")
    parser.add_argument("--images", type=int, default=8, help="number of images in `mixing`")
    parser.add_argument("--loras", type=int, default=50, help="number of LoRAs in `memory`")
    parser.add_argument("--fitting", type=int, default=8, help="number of LoRAs that fit on the device in `memory`")
    parser.add_argument(
        "--memory-rank", type=int, default=128, help="rank of the LoRAs in `memory`, large to be measurable"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
