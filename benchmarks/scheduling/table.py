"""Writes the compared orders of work as a Markdown table."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.performance.markdown import table
from benchmarks.scheduling.simulation import PolicyName

TITLES: Mapping[PolicyName, str] = {"deadline": "deadlines", "turns": "turns", "always_batch": "always in batches"}
"""The columns. First come, first served is 1 by definition."""


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean and p95 of each device and workload by order of work, in shares of first come, first served."""
    cells = {(row["device"], row["workload"], row["policy"]): f"{row['mean']:.2f}, {row['p95']:.2f}" for row in rows}
    workloads = dict.fromkeys((device, workload) for device, workload, _ in cells)
    return table(
        ("mean, p95", *TITLES.values()),
        [
            (f"{device}, {workload}", *(cells.get((device, workload, policy), "-") for policy in TITLES))
            for device, workload in workloads
        ],
    )
