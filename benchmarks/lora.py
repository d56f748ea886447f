"""What do LoRAs cost? Over HTTP, in a step, between two of them, many in one pass, and in memory

scripts/bench lora
scripts/bench lora --parts blocks --seconds 60
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks import lora_latency, lora_steps, lora_switching
from benchmarks.report import report
from serve.settings import Precision

PRECISIONS: tuple[Precision, ...] = ("bf16", "fp8")


def _for_each_precision(part: Callable[..., Any], *arguments: float) -> dict[str, Any]:
    return {precision: part(precision, *arguments) for precision in PRECISIONS}


def _steps(options: argparse.Namespace) -> dict[str, Any]:
    return _for_each_precision(lora_steps.embedded_step, options.rank, options.seconds)


def _blocks(options: argparse.Namespace) -> dict[str, Any]:
    return _for_each_precision(lora_steps.true_blocks, options.rank, options.seconds)


def _switch(options: argparse.Namespace) -> dict[str, Any]:
    return _for_each_precision(lora_switching.switch, options.rank, options.seconds)


def _mixing(options: argparse.Namespace) -> dict[str, Any]:
    return _for_each_precision(
        lora_switching.mixing, options.rank, options.seconds, options.steps, options.mixed_loras, options.images
    )


def _memory(options: argparse.Namespace) -> dict[str, Any]:
    return lora_switching.memory(options.memory_rank, options.loras, options.fitting)


def _latency(options: argparse.Namespace) -> dict[str, Any]:
    return lora_latency.latency(options.rank, options.rounds)


PARTS: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "latency": _latency,
    "steps": _steps,
    "blocks": _blocks,
    "switch": _switch,
    "mixing": _mixing,
    "memory": _memory,
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(1)
    report(str(__doc__).splitlines()[0], vars(options), {part: PARTS[part](options) for part in options.parts})


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--parts", choices=tuple(PARTS), nargs="+", default=list(PARTS))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15, help="of `latency`, four requests each")
    parser.add_argument("--seconds", type=float, default=30, help="for each comparison")
    parser.add_argument("--steps", type=int, default=4, help="of each picture of `mixing`")
    parser.add_argument("--mixed-loras", type=int, default=4, help="different LoRAs of `mixing`")
    parser.add_argument("--images", type=int, default=8, help="pictures of `mixing`")
    parser.add_argument("--loras", type=int, default=50, help="of `memory`")
    parser.add_argument("--fitting", type=int, default=8, help="LoRAs for which `memory` has room")
    parser.add_argument("--memory-rank", type=int, default=128, help="of the LoRAs of `memory`: large, to be seen")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
