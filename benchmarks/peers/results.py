"""Computes the measures of each server, their ratios and the Markdown table."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.client import Turn
from benchmarks.report import percentiles

MISSING = "-"
Measures = Mapping[str, float]
"""Value by the name of a measure. A measure is missing if the server could not be measured."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure of which less is better."""

    title: str
    decimals: int = 2
    has_ratio: bool = True


@dataclass(frozen=True, slots=True)
class ScenarioMeasure:
    """A measure of the turns of one scenario."""

    name: str
    measure: Measure
    compute: Callable[[Sequence[float], float], float]
    """From the latencies and the sum of the seconds of all rounds."""


def _percentile(share: int) -> Callable[[Sequence[float], float], float]:
    return lambda latencies_s, _: percentiles(latencies_s)[f"p{share}_s"]


def _total(_: Sequence[float], seconds: float) -> float:
    return seconds


def _mean(latencies_s: Sequence[float], _: float) -> float:
    return statistics.mean(latencies_s)


SCENARIO_MEASURES: dict[str, tuple[ScenarioMeasure, ...]] = {
    "alone": (ScenarioMeasure("alone_p50_s", Measure("one request alone, p50, s", 3), _percentile(50)),),
    "equal": (
        ScenarioMeasure("equal_total_s", Measure("equal requests, 8 in flight, total, s"), _total),
        ScenarioMeasure("equal_p95_s", Measure("equal requests, p95, s"), _percentile(95)),
    ),
    "mixed": (
        ScenarioMeasure("mixed_total_s", Measure("mixed requests, 8 in flight, total, s"), _total),
        ScenarioMeasure("mixed_mean_s", Measure("mixed requests, mean, s"), _mean),
        ScenarioMeasure("mixed_p50_s", Measure("mixed requests, p50, s"), _percentile(50)),
        ScenarioMeasure("mixed_p95_s", Measure("mixed requests, p95, s"), _percentile(95)),
    ),
    "four_outputs": (ScenarioMeasure("four_outputs_p50_s", Measure("four images, p50, s"), _percentile(50)),),
    "half_canceled": (
        ScenarioMeasure("half_canceled_total_s", Measure("half of the clients disconnect, total, s"), _total),
    ),
    "burst": (
        ScenarioMeasure("burst_total_s", Measure("burst of small requests, total, s"), _total),
        ScenarioMeasure("burst_p95_s", Measure("burst of small requests, p95, s"), _percentile(95)),
    ),
}
SERVER_MEASURES = {
    "start_s": Measure("start until the first image, s", 1),
    "memory_mb": Measure("memory after the start, MB", 0),
    "peak_mb": Measure("largest memory, MB", 0),
    "idle_cores": Measure("CPU while idle, cores", has_ratio=False),
}
MEASURES: dict[str, Measure] = {
    each.name: each.measure for group in SCENARIO_MEASURES.values() for each in group
} | SERVER_MEASURES


def scenario_measures(turns: Mapping[str, Sequence[Turn]]) -> dict[str, float]:
    """The measures of a server by its turns, by scenario. Scenarios without a successful request are left out."""
    measures: dict[str, float] = {}
    for scenario, own_turns in turns.items():
        latencies_s = [latency for turn in own_turns for latency in turn.latencies_s]
        seconds = sum(turn.seconds for turn in own_turns)
        if latencies_s:
            computed = {each.name: each.compute(latencies_s, seconds) for each in SCENARIO_MEASURES[scenario]}
            measures |= {name: round(value, 4) for name, value in computed.items()}
    return measures


def ratios(ours: Measures, peer: Measures) -> dict[str, float]:
    """Ours divided by the peer's, for each measure that both have."""
    return {
        name: round(ours[name] / peer[name], 3)
        for name, measure in MEASURES.items()
        if measure.has_ratio and name in ours and peer.get(name)
    }


def markdown_table(result: Mapping[str, Any]) -> str:
    """The measures of all servers, and for each peer in parentheses ours divided by its measure."""
    names = list(result["servers"])
    rows = [["", *(_heading(name, result["servers"][name]) for name in names)], ["---", *("--:" for _ in names)]]
    for key, measure in MEASURES.items():
        cells = [_cell(measure, server["measures"].get(key), server["ratios"].get(key)) for server in _servers(result)]
        if any(cell != MISSING for cell in cells):
            rows.append([measure.title, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _servers(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(result["servers"].values())


def _heading(name: str, server: Mapping[str, Any]) -> str:
    return f"{name} ({server['description']})"


def _cell(measure: Measure, value: float | None, ratio: float | None) -> str:
    if value is None:
        return MISSING
    text = f"{value:.{measure.decimals}f}"
    return text if ratio is None else f"{text} ({ratio:.2f})"
