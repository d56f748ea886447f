"""Measures the prediction endpoints with a full database and without an engine.

    scripts/bench api
    scripts/bench api --rows 100000 --databases sqlite --requests 1000

Processes of the ingress, which share one database, run the application of the service with pools that answer at once.
The client and the database run on the same machine, so they share its cores. Each measurement is printed as a line of
JSON; the last line has them all.
"""

import argparse
import asyncio
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from benchmarks.api.ingress_processes import ingress_processes
from benchmarks.api.operations import OPERATIONS, Limits, create_prediction, measure
from benchmarks.api.postgres import find_binaries, postgres_server
from benchmarks.api.stored_rows import StoredPredictions, insert_rows, make_copies, read_row
from benchmarks.performance.markdown import table
from benchmarks.report import print_progress, report

QUESTION = "how fast are the prediction endpoints with many stored predictions, without an engine?"
DATABASES = ("sqlite", "postgresql")
COLUMNS = {"requests/s": "per_s", "p50, ms": "p50_ms", "p95, ms": "p95_ms", "p99, ms": "p99_ms"}


def measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each database, number of processes, number of clients and operation."""
    rows = []
    for name in options.databases:
        with tempfile.TemporaryDirectory(prefix="bench-api-") as folder, _database_url(name, Path(folder)) as url:
            if url is None:
                print_progress(f"{name}: skipped, as it is not installed")
                continue
            stored = _fill(url, Path(folder), options.rows)
            for processes in options.processes if name == "postgresql" else (1,):
                labels = {"database": name, "processes": processes, "rows": options.rows}
                with ingress_processes(processes, url, Path(folder)) as urls:
                    rows += _measure_operations(urls, stored, labels, options)
    return rows


def _measure_operations(
    urls: Sequence[str], stored: StoredPredictions, labels: dict[str, Any], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    limits = Limits(options.requests, options.seconds)
    for clients in options.concurrency:
        for operation in options.operations:
            measurement = asyncio.run(measure(urls, operation, stored, clients, limits))
            row = labels | {"clients": clients, "operation": operation} | measurement.to_json()
            print(json.dumps(row), flush=True)
            yield row


@contextmanager
def _database_url(name: str, folder: Path) -> Iterator[str | None]:
    """The URL of an empty database; None if the database is not installed."""
    if name == "sqlite":
        yield f"sqlite:///{folder / 'predictions.db'}"
        return
    binaries = find_binaries()
    if binaries is None:
        yield None
        return
    with postgres_server(binaries) as url:
        yield url


def _fill(url: str, folder: Path, count: int) -> StoredPredictions:
    """Lets the service run a prediction, and stores copies of it."""
    with ingress_processes(1, url, folder) as (ingress,):
        prediction_id = asyncio.run(create_prediction(ingress))
    row = asyncio.run(read_row(url, prediction_id))
    stored = StoredPredictions(count, datetime.now(UTC))
    start_s = time.perf_counter()
    asyncio.run(insert_rows(url, tuple(row), make_copies(row, stored)))
    print_progress(f"{count} rows inserted in {time.perf_counter() - start_s:.0f} s")
    return stored


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse_options(arguments)
    rows = measure_all(options)
    print_progress(markdown_table(rows))
    report(QUESTION, vars(options), {"rows": rows, "libraries": {name: version(name) for name in LIBRARIES}})


def markdown_table(rows):
    return table(
        ("database, processes", "clients", "operation", *COLUMNS),
        [
            (f"{row['database']}, {row['processes']}", str(row["clients"]), row["operation"], *(str(row.get(key, "-")) for key in COLUMNS.values()))
            for row in rows
        ],
        text_columns=1,
    )


LIBRARIES = ("sqlalchemy", "asyncpg", "aiosqlite", "uvicorn", "httpx")

def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="api", description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="predictions that are stored before")
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES, metavar="NAME")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 3], metavar="N", help="of the ingress; SQLite always has one")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8], metavar="N", help="requests at a time")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS), metavar="NAME")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=4)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
