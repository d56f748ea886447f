"""The parts of the GPU benchmark in the order in which they run: the most important first, the tests last."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

_PACKAGE = "benchmarks.gpu_check"
MODULES = tuple(f"{_PACKAGE}.{name}" for name in ("limits", "kernels", "steps", "loras", "replica", "gpu_tests"))
"""Imported by a worker before its first part."""


@dataclass(frozen=True)
class Part:
    """One configuration, which runs in a process of its own."""

    name: str
    function: str
    """Dotted name of a function that yields rows. It gets the name of the scale, then `arguments`."""
    arguments: tuple[str, ...]
    estimate_s: float
    """Expected duration on a GPU. A part whose estimate exceeds the rest of the budget is skipped."""
    limit_s: float
    """The process is killed after this time."""


def _part(name: str, function: str, arguments: Sequence[str], estimate_s: float) -> Part:
    return Part(name, f"{_PACKAGE}.{function}", tuple(arguments), estimate_s, limit_s=2 * estimate_s + 20)


def _replica(variant: str, precision: str, process: str, estimate_s: float) -> Part:
    name = "-".join(("replica", variant, precision, *(() if process == "first" else (process,))))
    return _part(name, "replica.measure_replica", (variant, precision, process), estimate_s)


def _steps(variant: str, precision: str, estimate_s: float) -> Part:
    return _part(f"steps-{variant}-{precision}", "steps.measure_steps", (variant, precision), estimate_s)


def _loras(precision: str, estimate_s: float) -> Part:
    return _part(f"loras-dev-{precision}", "loras.measure_loras", (precision,), estimate_s)


def _kernels(precision: str) -> Part:
    return _part(f"kernels-dev-{precision}", "kernels.measure_kernels", (precision,), 100)


def _ablation(precision: str, switch: str) -> Part:
    return _part(f"ablation-{precision}-{switch}", "steps.measure_ablation", (precision, switch), 15)


_COMMON_SWITCHES = ("compile", "cuda_graphs", "run_ahead", "attention", "precompute_modulation", "lora_product")
PARTS: tuple[Part, ...] = (
    _part("limits", "limits.measure_limits", (), 25),
    _kernels("fp8"),
    _steps("dev", "bf16", 80),
    _loras("bf16", 110),
    _steps("dev", "fp8", 90),
    _loras("fp8", 110),
    _kernels("bf16"),
    _replica("dev", "bf16", "first", 320),
    _replica("dev", "bf16", "second", 120),
    _replica("dev", "fp8", "first", 320),
    _replica("schnell", "bf16", "first", 250),
    _replica("schnell", "fp8", "first", 250),
    _ablation("fp8", "none"),
    _ablation("fp8", "fp8_kernel"),
    _ablation("bf16", "none"),
    *(_ablation("bf16", switch) for switch in _COMMON_SWITCHES),
    *(_ablation("fp8", switch) for switch in _COMMON_SWITCHES),
    _steps("schnell", "bf16", 15),
    _steps("schnell", "fp8", 15),
    _part("tests", "gpu_tests.run_gpu_tests", (), 75),
)


def select_parts(patterns: Sequence[str]) -> list[Part]:
    """The parts whose names match any of the patterns, such as `ablation-*`; without patterns, all of them.

    Raises ValueError for a pattern that matches no part.
    """
    for pattern in patterns:
        if not any(fnmatch(part.name, pattern) for part in PARTS):
            raise ValueError(f"{pattern} matches none of {', '.join(part.name for part in PARTS)}")
    return [part for part in PARTS if not patterns or any(fnmatch(part.name, pattern) for pattern in patterns)]
