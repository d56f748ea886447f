"""Sends more requests at once than a pool accepts, and compares `Retry-After` with the true wait.

    scripts/bench burst --requests 200 --input num_inference_steps=4 --input megapixels=0.25

Each client sends its request again after `Retry-After`, until it is accepted. The true wait of the k-th refused request
lasts until the k-th prediction of the burst ends, which makes a place for it. The clients use aiohttp: with hundreds
of connections, a request takes httpx ten times as much of the CPU, which clients and service share here.
"""

import argparse
import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import aiohttp

from benchmarks.load import auth_headers, parse_inputs
from benchmarks.report import percentiles, report, stop_on_sigterm
from serve.launch.subprocess_service import local_service

WARM_UP_PREDICTIONS = 4
"""Before the burst, since a pool without a finished prediction cannot estimate its speed."""
POLL_INTERVAL_S = 5.0
"""Long, so that the clients of a burst do not take the processor from the service."""
REQUEST_TIMEOUT_S = 60.0
MAX_FACTOR = 2.0
ROUNDING_S = 1.0
"""An estimate is good if it is at most `MAX_FACTOR` times too long or too short, or as near as `Retry-After` can be,
which has whole seconds."""


@dataclass
class ClientResult:
    """What one client saw. Times are seconds since 1970."""

    answer_s: list[float] = field(default_factory=list)
    """How long each POST took."""
    refused_at_s: float | None = None
    retry_after_s: float = 0.0
    """Of the first refusal."""
    ended_at_s: float = 0.0
    outcome: str = "error"


async def run_burst(session: aiohttp.ClientSession, inputs: dict[str, Any], count: int) -> list[ClientResult]:
    """`count` clients send one request each, at once, and wait for the end of its prediction."""
    results = [ClientResult() for _ in range(count)]
    async with asyncio.TaskGroup() as clients:
        for seed, result in enumerate(results):
            clients.create_task(_run_client(session, {**inputs, "seed": seed}, result))
    return results


async def _run_client(session: aiohttp.ClientSession, inputs: dict[str, Any], result: ClientResult) -> None:
    response = await _create(session, inputs, result)
    while response.status == 429:
        retry_after_s = float(response.headers["Retry-After"])
        if result.refused_at_s is None:
            result.refused_at_s, result.retry_after_s = time.time(), retry_after_s
        await asyncio.sleep(retry_after_s)
        response = await _create(session, inputs, result)
    response.raise_for_status()
    prediction = await response.json()
    while prediction["status"] in ("starting", "processing"):
        await asyncio.sleep(POLL_INTERVAL_S)
        async with session.get(f"/v1/predictions/{prediction['id']}", raise_for_status=True) as response:
            prediction = await response.json()
    result.outcome = prediction["status"]
    result.ended_at_s = datetime.fromisoformat(prediction["completed_at"]).timestamp()


async def _create(
    session: aiohttp.ClientSession, inputs: dict[str, Any], result: ClientResult
) -> aiohttp.ClientResponse:
    start_s = time.perf_counter()
    headers = {"Prefer": "respond-async"}
    async with session.post("/v1/predictions", json={"input": inputs}, headers=headers) as response:
        await response.read()
    result.answer_s.append(time.perf_counter() - start_s)
    return response


def summarise(results: Sequence[ClientResult]) -> dict[str, Any]:
    """The outcomes, the requests, and how many estimates were good."""
    ends_s = sorted(result.ended_at_s for result in results)
    refusals = sorted(
        (result.refused_at_s, result.retry_after_s) for result in results if result.refused_at_s is not None
    )
    waits_s = [
        (retry_after_s, end_s - refused_at_s)
        for end_s, (refused_at_s, retry_after_s) in zip(ends_s, refusals, strict=False)
    ]
    factors = [estimate_s / true_s for estimate_s, true_s in waits_s if true_s > 0]
    answers_s = [answer_s for result in results for answer_s in result.answer_s]
    return {
        "outcomes": {outcome: sum(r.outcome == outcome for r in results) for outcome in {r.outcome for r in results}},
        "posts": len(answers_s),
        "refused": len(refusals),
        "good_estimates": sum(itertools.starmap(_is_good, waits_s)),
        "estimate_by_true_wait": percentiles(factors, ""),
        "true_wait": percentiles([true_s for _, true_s in waits_s]),
        "post": percentiles(answers_s) | {"max_s": round(max(answers_s), 4)},
    }


def _is_good(estimate_s: float, true_s: float) -> bool:
    is_near = abs(estimate_s - true_s) <= ROUNDING_S
    return is_near or true_s / MAX_FACTOR <= estimate_s <= true_s * MAX_FACTOR


async def _measure(url: str, inputs: dict[str, Any], count: int, timeout_s: float) -> dict[str, Any]:
    connections = aiohttp.TCPConnector(limit=0)  # no limit
    session = aiohttp.ClientSession(
        url, headers=auth_headers(), connector=connections, timeout=aiohttp.ClientTimeout(REQUEST_TIMEOUT_S)
    )
    async with session, asyncio.timeout(timeout_s):
        await run_burst(session, inputs, WARM_UP_PREDICTIONS)
        start_s = time.perf_counter()
        results = await run_burst(session, inputs, count)
        return summarise(results) | {"elapsed_s": round(time.perf_counter() - start_s, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--url", help="URL of a running service; by default the embedded service is started")
    parser.add_argument("--requests", type=int, default=200, help="requests at once")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds until the benchmark is given up")
    parser.add_argument("--input", action="append", default=[], metavar="KEY=VALUE", help="an input of the API")
    options = parser.parse_args()
    stop_on_sigterm()
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(local_service(on_line=print)).url
        summary = asyncio.run(_measure(url, parse_inputs(options.input), options.requests, options.timeout))
    report("how good are the estimates of Retry-After?", vars(options), summary)


if __name__ == "__main__":
    main()
