"""The load benchmark: its statistics, and its request rate with a slow server."""

import asyncio
import time

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.load import RequestResult, parse_server_timing, run_load, summarise
from tests.asgi_server import listening


def test_server_timing_is_parsed_by_stage() -> None:
    assert parse_server_timing('queue;dur=310.5, denoise;desc="x";dur=2104,total') == {"queue": 310.5, "denoise": 2104}
    assert parse_server_timing("") == {}


def test_goodput_counts_only_requests_within_the_deadline() -> None:
    results = [
        RequestResult("succeeded", 1, {"queue": 10}),
        RequestResult("late", 9, {"queue": 30}),
        RequestResult("refused", 0.1),
    ]
    summary = summarise(results, elapsed_s=2)
    assert summary["goodput_per_s"] == 0.5
    assert summary["outcomes"] == {"succeeded": 1, "late": 1, "refused": 1}
    assert summary["median_stages_ms"] == {"queue": 20}


async def test_slow_service_does_not_delay_later_requests() -> None:
    arrivals = []

    async def respond(request: Request) -> JSONResponse:
        arrivals.append(time.perf_counter())
        await asyncio.sleep(0.5)
        return JSONResponse({"id": "x", "status": "succeeded"}, 201, {"Server-Timing": "queue;dur=5"})

    app = Starlette(routes=[Route("/v1/predictions", respond, methods=["POST"])])
    async with listening(app) as url:
        results = await run_load(url, {"prompt": "x"}, rate=40, duration_s=0.25, deadline_s=5)
    assert [result.outcome for result in results] == ["succeeded"] * 10
    assert arrivals[-1] - arrivals[0] < 0.45
    assert results[0].stages_ms == {"queue": 5}
