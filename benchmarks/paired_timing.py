"""A fair comparison of ways to do the same: they take turns, and only the processor's time for them counts."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

FEWEST_ROUNDS = 5


def take_turns(ways: Mapping[str, Callable[[], Any]], seconds: float, what: str) -> dict[str, list[float]]:
    """The seconds that each way took in each round. There are as many rounds as end in `seconds`, and a few at least.

    A machine that changes its speed changes it for all; who is first changes too. For work on one CPU thread: what the
    processor did for others meanwhile is not in it, nor is any wait. One round before them does not count.
    """
    for way in ways.values():
        way()
    spent_s: dict[str, list[float]] = {name: [] for name in ways}
    order, begun, told = list(ways), time.monotonic(), 0.0
    while (elapsed_s := time.monotonic() - begun) < seconds or len(spent_s[order[0]]) < FEWEST_ROUNDS:
        for name in order:
            spent_s[name].append(_processor_s(ways[name]))
        order.reverse()
        if elapsed_s - told > seconds / 4:
            told = elapsed_s
            print(f"{what}: {elapsed_s:.0f} of {seconds:g} s", file=sys.stderr, flush=True)
    return spent_s


def extra(plain_s: list[float], other_s: list[float]) -> dict[str, float]:
    """How much longer the other way took, as a share: the median over rounds, and between the best round of each."""
    ratios = [other / plain for plain, other in zip(plain_s, other_s, strict=True)]
    return {
        "median": round(statistics.median(ratios) - 1, 4),
        "best": round(min(other_s) / min(plain_s) - 1, 4),
        "rounds": len(ratios),
    }


def _processor_s(way: Callable[[], Any]) -> float:
    begun = time.process_time()
    way()
    return time.process_time() - begun
