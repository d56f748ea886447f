"""Measures the prediction endpoints with a full database and without an engine.

    scripts/bench api
    scripts/bench api --rows 10000 --databases sqlite --requests 1000

Processes of the ingress share one database. They run the application of the service, with pools that answer at once.
The client and the database use the same machine. Each measurement is printed as a line of JSON; the last line has all.
`--save` writes `benchmarks/results/api.json`, which `python -m benchmarks.performance` reads.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.api.ingress_processes import IngressProcesses, ingress_processes
from benchmarks.api.operations import OPERATIONS, Limits, create_prediction, measure
from benchmarks.api.postgres import PostgresUnavailable, postgres_server
from benchmarks.api.stored_rows import StoredPredictions, insert_rows, make_copies, read_row, read_version
from benchmarks.api.table import markdown_table
from benchmarks.report import make_report, print_progress, stop_on_sigterm

QUESTION = "how fast are the prediction endpoints with many stored predictions, without an engine?"
RESULT_FILE = Path(__file__).parents[1] / "results" / "api.json"
DATABASES = ("sqlite", "postgresql")
LIBRARIES = ("asyncpg", "httpx", "pydantic", "sqlalchemy", "starlette", "uvicorn")

Figures = dict[str, Any]


def measure_all(options: argparse.Namespace) -> list[Figures]:
    """One row for each database, number of processes, number of clients and operation."""
    rows: list[Figures] = []
    for name in options.databases:
        try:
            rows += _measure_database(name, options)
        except PostgresUnavailable as error:
            print_progress(f"{name}: skipped: {error}")
    return rows


def _measure_database(name: str, options: argparse.Namespace) -> Iterator[Figures]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-api-")))
        is_sqlite = name == "sqlite"
        url = f"sqlite:///{folder / 'predictions.db'}" if is_sqlite else stack.enter_context(postgres_server()).url
        stored = _fill(url, folder, options.rows)
        labels = {"database": name, "version": asyncio.run(read_version(url)), "rows": options.rows}
        for count in [1] if is_sqlite else options.processes:
            with ingress_processes(count, url, folder) as processes:
                for figures in _measure_operations(processes, stored, options):
                    row = labels | {"processes": count} | figures
                    print(json.dumps(row), flush=True)
                    yield row


def _fill(url: str, folder: Path, count: int) -> StoredPredictions:
    """Lets the service run a prediction, and stores copies of it."""
    with ingress_processes(1, url, folder) as processes:
        prediction_id = asyncio.run(create_prediction(processes.urls[0]))
    row = asyncio.run(read_row(url, prediction_id))
    stored = StoredPredictions(count, datetime.now(UTC))
    start_s = time.perf_counter()
    asyncio.run(insert_rows(url, tuple(row), make_copies(row, stored)))
    # Otherwise the first checkpoint of SQLite would wait until the disk has all of these rows.
    os.sync()
    print_progress(f"{count} predictions stored in {time.perf_counter() - start_s:.0f} s")
    return stored


def _measure_operations(
    processes: IngressProcesses, stored: StoredPredictions, options: argparse.Namespace
) -> Iterator[Figures]:
    limits = Limits(options.requests, options.seconds)
    for clients in options.concurrency:
        for operation in options.operations:
            measurement = asyncio.run(measure(processes, operation, stored, clients, limits))
            yield {"operation": operation, "clients": clients} | measurement.to_json()


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse_options(arguments)
    stop_on_sigterm()
    before = os.getloadavg()[0]
    rows = measure_all(options)
    print_progress(markdown_table(rows))
    figures = {
        "rows": rows,
        "libraries": {name: version(name) for name in LIBRARIES},
        "load_averages": {"start": before, "end": os.getloadavg()[0]},
    }
    result = make_report(QUESTION, vars(options), figures)
    print(json.dumps(result))
    if options.save:
        RESULT_FILE.write_text(json.dumps({"table": markdown_table(rows)} | result, indent=1) + "\n", encoding="utf-8")


def _parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="api", description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="stored predictions")
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES, metavar="NAME")
    parser.add_argument(
        "--processes", nargs="+", type=int, default=(1, 3), metavar="N", help="of the ingress, with PostgreSQL"
    )
    parser.add_argument("--concurrency", nargs="+", type=int, default=(1, 8), metavar="N", help="requests at once")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS), metavar="NAME")
    parser.add_argument("--requests", type=int, default=500, metavar="N", help="at most, of each measurement")
    parser.add_argument("--seconds", type=float, default=3, help="at most, of each measurement")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/api.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
