"""The benchmark of the prediction endpoints: its stored rows, its limits, and small runs with both databases."""

import json
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.api import __main__ as benchmark
from benchmarks.api import postgres
from benchmarks.api.operations import OPERATIONS, Limits, measure
from benchmarks.api.stored_rows import DATA_AGE, PERIOD, Row, StoredPredictions, insert_rows, make_copies, read_row
from benchmarks.performance.page import render
from benchmarks.performance.results import RESULTS
from serve.database.tables import predictions
from serve.database.times import to_us
from serve.predictions.prediction import Prediction
from tests.app_factory import AppUnderTest, close_apps, make_app
from tests.asgi_server import listening
from tests.fakes import NOON, ONE_IMAGE, FakePool
from tests.markdown import section, tables

STORED = StoredPredictions(2000, NOON)


class FakeProcesses:
    """One process, which uses no CPU time."""

    def __init__(self, url: str) -> None:
        self.urls = (url,)

    def cpu_s(self) -> float:
        return 0.0


@asynccontextmanager
async def service(status: int = 200) -> AsyncGenerator[tuple[FakeProcesses, list[str]], None]:
    """A service that gives every request the same response, and the methods and URLs of the requests."""
    received: list[str] = []

    async def respond(request: Request) -> JSONResponse:
        received.append(f"{request.method} {request.url.path}?{request.url.query}")
        # Warm-up requests succeed.
        return JSONResponse({}, status if len(received) > 8 else 200)

    routes = [Route("/v1/predictions", respond, methods=["GET", "POST"]), Route("/v1/predictions/{id}", respond)]
    async with listening(Starlette(routes=routes)) as url:
        yield FakeProcesses(url), received


@pytest.mark.parametrize("clients", [1, 8])
async def test_measurement_ends_after_the_number_of_requests(clients: int) -> None:
    async with service() as (processes, received):
        measurement = await measure(processes, "get", STORED, clients, Limits(20, seconds=60))
    assert len(measurement.latencies_s) == 20
    assert len(received) == 28
    assert measurement.to_json()["requests"] == 20


async def test_measurement_ends_after_its_time() -> None:
    async with service() as (processes, _):
        measurement = await measure(processes, "get", STORED, 1, Limits(1_000_000, seconds=0.01))
    assert len(measurement.latencies_s) < 1000


async def test_failures_are_counted_by_status() -> None:
    async with service(429) as (processes, _):
        measurement = await measure(processes, "create", STORED, 2, Limits(10, seconds=60))
    assert measurement.failures == {"429": 10}
    assert measurement.to_json()["per_s"] == 0


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_requests_are_about_stored_predictions(operation: str) -> None:
    ids = {each.id for each in STORED}
    async with service() as (processes, received):
        await measure(processes, operation, STORED, 1, Limits(5, seconds=60))
    assert len(received) == 13
    for line in received:
        words = line.replace("newer-", "").replace("/", "=").replace("?", "=").split("=")
        has_id = bool(ids & set(words))
        assert has_id == (operation in {"get", "list older", "list newer"})


def test_keys_are_unique_and_in_the_order_of_their_times() -> None:
    keys = list(STORED)
    assert len({key.id for key in keys}) == len(keys) == STORED.count
    times = [key.created_at for key in keys]
    assert times == sorted(times)
    assert times[0] == NOON - PERIOD
    assert NOON - timedelta(hours=1) < times[-1] < NOON
    assert STORED.choose(random.Random(0)) in keys


@pytest.fixture
async def app() -> AsyncGenerator[AppUnderTest, None]:
    yield make_app(FakePool(ONE_IMAGE))
    await close_apps()


async def test_copies_are_rows_as_the_service_writes_them(app: AppUnderTest) -> None:
    row, stored = await _row_of_a_prediction(app), StoredPredictions(2000, datetime.now(UTC))
    assert row.keys() == set(predictions.c.keys())
    plan = Prediction.model_validate_json(row["record"]).plan
    copies = [dict(zip(row, values, strict=True)) for values in make_copies(row, stored)]
    for copy, key in zip(copies, stored, strict=True):
        record = Prediction.model_validate_json(copy["record"])
        is_old = stored.until - key.created_at >= DATA_AGE
        assert (copy["id"], record.id, record.created_at) == (key.id, key.id, key.created_at)
        assert copy["created_us"] == copy["ended_us"] == to_us(key.created_at)
        assert copy["data_removed"] == record.data_removed == (record.inputs == {}) == is_old
        assert copy["output_bytes"] == (0 if is_old else row["output_bytes"])
        assert record.plan.model_copy(update={"prompt": plan.prompt}) == plan


async def test_copies_are_listed_by_their_times(app: AppUnderTest) -> None:
    row, stored = await _row_of_a_prediction(app), StoredPredictions(250, datetime.now(UTC))
    await app.database.aclose()
    await insert_rows(str(app.database.url), tuple(row), make_copies(row, stored))
    reader = make_app(FakePool(ONE_IMAGE), state=app.state)
    ids, query = [], ""
    while query is not None:
        page = (await reader.http.get(f"/v1/predictions{query}")).raise_for_status().json()
        ids += [each["id"] for each in page["results"]]
        query = page["next"] and "?" + page["next"].partition("?")[2]
    assert ids == [row["id"], *(key.id for key in reversed(list(stored)))]


async def _row_of_a_prediction(app: AppUnderTest) -> Row:
    prediction = await app.service.wait((await app.create({"prompt": "a boat"})).id)
    return await read_row(str(app.database.url), prediction.id)


def run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], str]:
    """The JSON lines of a small run, and what it printed to stderr."""
    benchmark.main(["--rows", "300", "--requests", "4", "--concurrency", "2", *arguments])
    captured = capsys.readouterr()
    return [json.loads(line) for line in captured.out.splitlines()], captured.err


@pytest.mark.parametrize("database", benchmark.DATABASES)
def test_each_measurement_is_printed_and_reported(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    if database == "postgresql" and postgres.find_binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    (*rows, report), table = run(["--databases", database, "--processes", "2", "--seconds", "60"], capsys)
    assert report["rows"] == rows
    assert [row["operation"] for row in rows] == list(OPERATIONS)
    for row in rows:
        assert (row["database"], row["processes"]) == (database, 1 if database == "sqlite" else 2)
        assert (row["rows"], row["clients"], row["requests"], row["failures"]) == (300, 2, 4, {})
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert f"| {database}, {row['processes']}: {row['operation']} |" in table
    assert {"sqlalchemy", "asyncpg"} <= report["libraries"].keys()
    assert report["where"]["cpus"] >= 1


def test_saved_result_is_a_table_of_the_performance_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page needs the transcribed first run too."""
    (first_run,) = RESULTS.glob("2026-11-26-*.jsonl")
    (tmp_path / first_run.name).write_text(first_run.read_text())
    assert "## API" not in render(tmp_path)
    monkeypatch.setattr(benchmark, "RESULT_FILE", tmp_path / "api.json")
    figures = {"per_s": 100.0, "p50_ms": 2.5, "p99_ms": 7.5, "cpu_ms": 1.5}
    labels = {"database": "sqlite", "processes": 1, "operation": "get"}
    rows = [labels | {"clients": clients} | figures for clients in (1, 8)]
    monkeypatch.setattr(benchmark, "measure_all", lambda _: rows)
    benchmark.main(["--save"])
    (table,) = tables(section(render(tmp_path), "API"))
    assert table[1:] == [["sqlite, 1: get", *["100.0", "2.5", "7.5", "1.5"] * 2]]
    assert json.loads((tmp_path / "api.json").read_text())["where"]["cpus"] >= 1


def test_database_that_is_not_installed_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(postgres, "find_binaries", lambda: None)
    (report,), messages = run(["--databases", "postgresql"], capsys)
    assert report["rows"] == []
    assert "postgresql: skipped" in messages.splitlines()[0]


def test_database_that_does_not_start_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(postgres, "find_binaries", lambda: tmp_path)
    (report,), messages = run(["--databases", "postgresql"], capsys)
    assert report["rows"] == []
    assert "postgresql: skipped" in messages.splitlines()[0]
