"""Plots the ratios of a saved result: `python -m benchmarks.peers.plot RESULT PLOT`, in the peers' environment."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

ROWS = {
    "alone_p50_s": "one request alone, p50",
    "equal_total_s": "equal requests, total time",
    "equal_p95_s": "equal requests, p95",
    "mixed_total_s": "mixed requests, total time",
    "mixed_p50_s": "mixed requests, p50",
    "mixed_p95_s": "mixed requests, p95",
    "four_outputs_p50_s": "four images, p50",
    "half_canceled_total_s": "half of the clients disconnect",
    "burst_total_s": "burst of small requests, total time",
    "burst_p95_s": "burst of small requests, p95",
    "start_s": "start until the first image",
    "peak_mb": "largest memory",
}
MARKERS = "osD^v"
DPI = 110
TICKS = (0.25, 0.5, 1, 2, 4, 8)


def draw(result: dict[str, Any], path: Path) -> None:
    """One row for each measure and one mark for each peer; marks left of 1 mean that the service needs less."""
    peers = {name: server for name, server in result["servers"].items() if server["ratios"]}
    names = [name for name in ROWS if any(name in server["ratios"] for server in peers.values())]
    figure, axes = pyplot.subplots(figsize=(8, 0.42 * len(names) + 1.4))
    for marker, (peer, server) in zip(MARKERS, peers.items(), strict=False):
        points = [(server["ratios"][name], row) for row, name in enumerate(names) if name in server["ratios"]]
        label = f"{peer} ({server['description']})"
        axes.plot(*zip(*points, strict=True), marker, label=label, markersize=7, alpha=0.8)
    axes.axvline(1, color="grey", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_yticks(range(len(names)), [ROWS[name] for name in names])
    axes.invert_yaxis()
    axes.grid(axis="both", color="#dddddd", linewidth=0.6)
    axes.set_xlabel("the service's value divided by that of the peer; below 1 the service needs less")
    axes.legend(loc="upper center", bbox_to_anchor=(0.3, -0.16), ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
