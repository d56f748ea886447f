"""The load test's arithmetic, and its clock against a server that answers slowly."""

import asyncio
import json
import time

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.load import Answer, parse_server_timing, run_load, summarise
from benchmarks.report import percentiles, report
from tests.listening import listening


def test_server_timing_is_read_by_stage() -> None:
    assert parse_server_timing('queue;dur=310.5, denoise;desc="x";dur=2104,total') == {"queue": 310.5, "denoise": 2104}
    assert parse_server_timing("") == {}


def test_percentiles_are_nearest_rank() -> None:
    assert percentiles([]) == {}
    assert percentiles(float(number) for number in range(1, 101)) == {"p50_s": 50, "p95_s": 95, "p99_s": 99}
    assert percentiles([2.0]) == {"p50_s": 2, "p95_s": 2, "p99_s": 2}


def test_only_pictures_in_time_count_as_goodput() -> None:
    answers = [Answer("succeeded", 1, {"queue": 10}), Answer("late", 9, {"queue": 30}), Answer("refused", 0.1)]
    result = summarise(answers, elapsed_s=2)
    assert result["goodput_per_s"] == 0.5
    assert result["outcomes"] == {"succeeded": 1, "late": 1, "refused": 1}
    assert result["median_stages_ms"] == {"queue": 20}


async def test_requests_are_sent_on_a_clock_that_a_slow_service_does_not_stop() -> None:
    arrivals = []

    async def answer(request: Request) -> JSONResponse:
        arrivals.append(time.perf_counter())
        await asyncio.sleep(0.5)
        return JSONResponse({"id": "x", "status": "succeeded"}, 201, {"Server-Timing": "queue;dur=5"})

    app = Starlette(routes=[Route("/v1/predictions", answer, methods=["POST"])])
    async with listening(app) as url:
        answers = await run_load(url, {"prompt": "x"}, rate=40, duration_s=0.25, deadline_s=5)
    assert [answer.outcome for answer in answers] == ["succeeded"] * 10
    assert arrivals[-1] - arrivals[0] < 0.45
    assert answers[0].stages_ms == {"queue": 5}


def test_the_report_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    report("why", {"a": 1}, {"figure": 2})
    line = json.loads(capsys.readouterr().out)
    assert line["figure"] == 2
    assert line["where"]["versions"]["torch"] != "absent"
