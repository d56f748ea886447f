"""Compares the CPU time of several functions by running them in turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.report import print_progress

MIN_ROUNDS = 5


def measure_in_turns(functions: Mapping[str, Callable[[], Any]], seconds: float, label: str) -> dict[str, list[float]]:
    """CPU seconds of each function in each round. Runs for `seconds`, and for at least `MIN_ROUNDS` rounds.

    Each round runs every function once, in alternating order, so a change of the CPU's speed affects all of them. CPU
    time excludes waits and other processes; it is only meaningful for work on one thread. The first round is not timed.
    """
    for function in functions.values():
        function()
    times_s: dict[str, list[float]] = {name: [] for name in functions}
    order, start_s, reported_s = list(functions), time.monotonic(), 0.0
    while (elapsed_s := time.monotonic() - start_s) < seconds or len(times_s[order[0]]) < MIN_ROUNDS:
        for name in order:
            times_s[name].append(_cpu_seconds(functions[name]))
        order.reverse()
        if elapsed_s - reported_s > seconds / 4:
            reported_s = elapsed_s
            print_progress(f"{label}: {elapsed_s:.0f} of {seconds:g} s")
    return times_s


def relative_overhead(baseline_s: list[float], other_s: list[float]) -> dict[str, float]:
    """How much longer the other function took, as a share of the baseline.

    `median` is the median over the rounds; `best` compares the fastest round of each function.
    """
    ratios = [other / baseline for baseline, other in zip(baseline_s, other_s, strict=True)]
    return {
        "median": round(statistics.median(ratios) - 1, 4),
        "best": round(min(other_s) / min(baseline_s) - 1, 4),
        "rounds": len(ratios),
    }


def _cpu_seconds(function: Callable[[], Any]) -> float:
    start_s = time.process_time()
    function()
    return time.process_time() - start_s
