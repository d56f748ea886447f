"""Prints the JSON line that ends every benchmark: its result, arguments, machine and library versions."""

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LIBRARIES = ("ray", "torch", "diffusers", "transformers", "optimum-quanto", "torchao", "peft", "pillow")


def report(question: str, arguments: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Prints the JSON line. The keys of `result` are at its top level."""
    print(json.dumps(make_report(question, arguments, result), default=str))


def make_report(question: str, arguments: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the JSON line."""
    return {"question": question, "arguments": dict(arguments), **result, "where": describe_machine()}


def print_progress(line: str) -> None:
    """Prints a line to stderr, so that stdout has only JSON."""
    print(line, file=sys.stderr, flush=True)


def percentiles(values: Iterable[float], unit: str = "_s") -> dict[str, float]:
    """p50, p95 and p99 by the nearest-rank method, named with the unit; empty if there are no values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {f"p{share}{unit}": round(ordered[max(0, -(-share * len(ordered) // 100) - 1)], 4) for share in (50, 95, 99)}


def stop_on_sigterm() -> None:
    """Lets SIGTERM end the benchmark through its `finally` blocks, so that no service is left running."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def describe_machine() -> dict[str, Any]:
    """The commit, the processor, the versions and the command."""
    return {
        "commit": _commit(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "command": " ".join((_program(), *sys.argv[1:])),
    }


def _commit() -> str:
    process = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return process.stdout.strip() or "unknown"


def _program() -> str:
    """The name of the script, or of the package that runs, without its folder."""
    path = Path(sys.argv[0])
    return path.parent.name if path.stem == "__main__" else path.stem


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
