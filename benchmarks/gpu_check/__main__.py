"""Measures FLUX.1 on one GPU: its limits, steps, LoRAs, images, start-up, an ablation of every optimisation, GPU tests.

    scripts/gpu-check
    scripts/gpu-check --only 'ablation-*' --output benchmarks/results/2026-12-01-h100.jsonl
    scripts/gpu-check --smoke

Prints JSON lines as they come. Weights are random and made on the GPU, so nothing is downloaded. With `--smoke`, the
same code runs on a CPU with tiny networks, to check that it works; its figures mean nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from benchmarks.gpu_check.parts import MODULES, select_parts
from benchmarks.gpu_check.runner import Plan, Runner
from benchmarks.report import describe_machine, print_progress

BUDGET_S, SMOKE_BUDGET_S = 480.0, 600.0
_CACHE_VARIABLES = {
    "XDG_CACHE_HOME": "cache",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
"""Folders of compiled code, empty at the start of a run, so that the first process compiles and later ones do not."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse_options(arguments)
    budget_s = options.budget_s or (SMOKE_BUDGET_S if options.smoke else BUDGET_S)
    plan = Plan(
        parts=options.parts,
        scale="smoke" if options.smoke else "gpu",
        budget_s=budget_s,
        limit_factor=4.0 if options.smoke else 1.0,
        estimate_factor=0.0 if options.smoke else 1.0,
        reuse_worker=options.smoke,
        modules=MODULES,
    )
    with _open_output(options.output) as output, tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        _emit({"run": describe_run(options.commit)}, output)
        results = _run(Runner(plan, _environment(Path(folder))).run(), len(plan.parts), output)
    print_progress(
        ", ".join(f"{list(results.values()).count(each)} {each}" for each in dict.fromkeys(results.values()))
    )
    accepted = {"done"} if options.smoke else {"done", "skipped"}
    return 0 if results and set(results.values()) <= accepted else 1


def _run(rows: Iterable[dict[str, Any]], parts: int, output: TextIO | None) -> dict[str, str]:
    """Emits all rows. Returns the result of each part."""
    results: dict[str, str] = {}
    for row in rows:
        _emit(row, output)
        if "result" in row:
            results[row["part"]] = row["result"]
            details = {key: value for key, value in row.items() if key not in ("part", "result")}
            print_progress(f"[{len(results)}/{parts}] {row['part']}: {row['result']} {details}")
    return results


def describe_run(commit: str | None = None) -> dict[str, Any]:
    """The GPU and its driver, the versions, the commit, the command and the date."""
    machine = describe_machine()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "gpu": _query_gpu(),
        **machine,
        **({"commit": commit} if commit else {}),
    }


def _query_gpu() -> dict[str, str] | None:
    """Name, memory and driver of the first GPU, by nvidia-smi, which needs no torch."""
    fields = ("name", "memory.total", "driver_version")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in process.stdout.splitlines()[0].split(",")]
    return dict(zip(("name", "memory", "driver"), values, strict=True))


def _environment(folder: Path) -> dict[str, str]:
    caches = {variable: str(folder / name) for variable, name in _CACHE_VARIABLES.items()}
    return {**os.environ, **caches, "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}


@contextmanager
def _open_output(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as output:
        yield output


def _emit(row: dict[str, Any], output: TextIO | None) -> None:
    line = json.dumps(row)
    print(line, flush=True)
    if output is not None:
        output.write(line + "\n")
        output.flush()


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu-check", description=str(__doc__).splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="run on a CPU with tiny networks")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="names of parts, or patterns")
    parser.add_argument(
        "--budget-s", type=float, metavar="S", help="time for all parts; what no longer fits is skipped"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="append all lines to this file")
    parser.add_argument("--commit", help="the commit that is measured; by default the one in git")
    options = parser.parse_args(arguments)
    try:
        options.parts = select_parts(options.only)
    except ValueError as error:
        parser.error(str(error))
    return options


if __name__ == "__main__":
    # SystemExit lets the runner kill its workers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
