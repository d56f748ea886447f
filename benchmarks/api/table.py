"""Writes the measurements as a Markdown table."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.performance.markdown import table

COLUMNS = {"per s": "per_s", "p50": "p50_ms", "p99": "p99_ms", "CPU": "cpu_ms"}
MISSING = "-"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each database, number of processes and operation, with the figures of each number of clients."""
    clients = list(dict.fromkeys(row["clients"] for row in rows))
    cells = {
        (_label(row), row["clients"], name): str(row.get(name, MISSING)) for row in rows for name in COLUMNS.values()
    }
    return table(
        ("ms", *(f"{title}, {number} at once" for number in clients for title in COLUMNS)),
        [
            (label, *(cells.get((label, number, name), MISSING) for number in clients for name in COLUMNS.values()))
            for label in dict.fromkeys(map(_label, rows))
        ],
    )


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['database']}, {row['processes']}: {row['operation']}"
