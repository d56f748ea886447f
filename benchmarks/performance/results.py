"""Reads the committed results of GPU runs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Run:
    """One file of results. It may hold several calls of the benchmark, of which each measured a part."""

    name: str
    calls: Sequence[Row]
    """The description of each call."""
    rows: Sequence[Row]

    @property
    def transcribed(self) -> bool:
        """Whether its figures were entered by hand, not written by the benchmark."""
        return any(call.get("transcribed") for call in self.calls)

    def select(self, **labels: Any) -> Iterator[Row]:
        """The rows with these labels."""
        return (row for row in self.rows if all(row.get(name) == value for name, value in labels.items()))

    def find(self, **labels: Any) -> Row | None:
        """The latest row with these labels that has figures."""
        rows = reversed(list(self.select(**labels)))
        return next((row for row in rows if "error" not in row and "unavailable" not in row), None)


def find(run: Run | None, **labels: Any) -> Row | None:
    return None if run is None else run.find(**labels)


def run_name(run: Run | None) -> str:
    return "current code" if run is None else run.name


def read_run(path: Path) -> Run:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return Run(
        name=path.stem,
        calls=[line["run"] for line in lines if "run" in line],
        rows=[line for line in lines if "topic" in line],
    )


def read_runs(folder: Path) -> tuple[Run, Run | None]:
    """The transcribed first run, and the newest run of the benchmark, if there is one. Files are named by date."""
    runs = [read_run(path) for path in sorted(folder.glob("*.jsonl"))]
    first = next(run for run in runs if run.transcribed)
    return first, next((run for run in reversed(runs) if not run.transcribed), None)


def read_table(folder: Path, name: str) -> str | None:
    """The Markdown table under the key `table` of a JSON file; None without the file."""
    path = folder / f"{name}.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["table"]) if path.is_file() else None
