"""Sends requests to the service over HTTP at a constant rate (open loop) and reports their outcomes and latencies.

    scripts/bench load --rate 1 --duration 30 --input num_inference_steps=4 --input megapixels=0.25

Requests are sent on a fixed clock. No request waits for an earlier one, so a slow service does not lower the rate.
Stage times come from the `Server-Timing` header of the responses.
"""

import argparse
import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx

from benchmarks.report import percentiles, report, stop_on_sigterm
from serve.launch.subprocess_service import local_service
from serve.settings import read_secrets

PROGRESS_INTERVAL_S = 5.0
MAX_REQUESTS = 10_000


@dataclass(frozen=True)
class RequestResult:
    """The outcome of one request. `latency_s` counts from the time at which the request was due to be sent."""

    outcome: str
    latency_s: float
    stages_ms: dict[str, float] = field(default_factory=dict)


async def run_load(
    url: str, inputs: dict[str, Any], rate: float, duration_s: float, deadline_s: float
) -> list[RequestResult]:
    """Sends `rate` requests per second for `duration_s` and waits for all results."""
    total = min(MAX_REQUESTS, int(rate * duration_s))
    results: list[RequestResult] = []
    start_s = time.perf_counter()
    async with service_client(url, deadline_s) as client:
        progress = asyncio.create_task(_print_progress(results, total, start_s))
        async with asyncio.TaskGroup() as senders:
            for number in range(total):
                due_s = start_s + number / rate
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                senders.create_task(_send(client, {**inputs, "seed": number}, due_s, deadline_s, results))
        progress.cancel()
    return results


async def _send(
    client: httpx.AsyncClient, inputs: dict[str, Any], due_s: float, deadline_s: float, results: list[RequestResult]
) -> None:
    """Sends one request, polls its prediction until it ends or the deadline passes, and appends the result."""
    outcome, stages = "error", {}
    with contextlib.suppress(httpx.HTTPError):
        response = await client.post("/v1/predictions", json={"input": inputs}, headers={"Prefer": "wait=60"})
        while _is_pending(response) and time.perf_counter() - due_s < deadline_s:
            await asyncio.sleep(0.5)
            response = await client.get(f"/v1/predictions/{response.json()['id']}")
        outcome = "refused" if response.status_code == 429 else _status(response)
        stages = parse_server_timing(response.headers.get("server-timing", ""))
    latency_s = time.perf_counter() - due_s
    if outcome == "succeeded" and latency_s > deadline_s:
        outcome = "late"
    results.append(RequestResult(outcome, latency_s, stages))


def parse_server_timing(header: str) -> dict[str, float]:
    """Milliseconds by stage, from a header such as `queue;dur=310, denoise;dur=2104`."""
    stages = {}
    for entry in filter(None, (part.strip() for part in header.split(","))):
        name, *parameters = entry.split(";")
        durations = [text.strip().removeprefix("dur=") for text in parameters if text.strip().startswith("dur=")]
        if durations:
            stages[name.strip()] = float(durations[0])
    return stages


def _is_pending(response: httpx.Response) -> bool:
    return response.is_success and response.json()["status"] in ("starting", "processing")


def _status(response: httpx.Response) -> str:
    return str(response.json()["status"]) if response.is_success else f"http {response.status_code}"


async def _print_progress(results: list[RequestResult], total: int, start_s: float) -> None:
    while True:
        await asyncio.sleep(PROGRESS_INTERVAL_S)
        succeeded = sum(result.outcome == "succeeded" for result in results)
        elapsed_s = time.perf_counter() - start_s
        print(f"{elapsed_s:6.0f} s  {len(results)}/{total} finished, {succeeded} succeeded", flush=True)


def summarise(results: Sequence[RequestResult], elapsed_s: float) -> dict[str, Any]:
    """Outcome counts, latency percentiles, median stage times and goodput.

    Goodput counts the requests per second that succeeded within the deadline.
    """
    outcomes: dict[str, int] = defaultdict(int)
    stages: dict[str, list[float]] = defaultdict(list)
    for result in results:
        outcomes[result.outcome] += 1
        for name, milliseconds in result.stages_ms.items():
            stages[name].append(milliseconds)
    return {
        "outcomes": dict(outcomes),
        "latency": percentiles(result.latency_s for result in results if result.outcome in ("succeeded", "late")),
        "goodput_per_s": round(outcomes["succeeded"] / elapsed_s, 4),
        "median_stages_ms": {name: round(median(values), 1) for name, values in stages.items()},
        "elapsed_s": round(elapsed_s, 2),
    }


def service_client(url: str, timeout_s: float) -> httpx.AsyncClient:
    """A client that sends the operator's token, over as many connections as it has requests."""
    return httpx.AsyncClient(
        base_url=url,
        timeout=timeout_s,
        headers=auth_headers(),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
    )


def auth_headers() -> dict[str, str]:
    """The operator's token, if there is one."""
    token = read_secrets().api_token
    return {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}


def parse_inputs(texts: Sequence[str]) -> dict[str, Any]:
    """The inputs of the API from `KEY=VALUE`. Values are JSON or text."""
    return {"prompt": "a red sailboat", **dict(_parse_input(text) for text in texts)}


def _parse_input(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--url", help="URL of a running service; by default the embedded service is started")
    parser.add_argument("--rate", type=float, default=0.5, help="requests per second")
    parser.add_argument("--duration", type=float, default=30, help="seconds during which requests are sent")
    parser.add_argument("--deadline", type=float, default=60, help="seconds after which a request counts as late")
    parser.add_argument("--input", action="append", default=[], metavar="KEY=VALUE", help="an input of the API")
    options = parser.parse_args()
    stop_on_sigterm()
    inputs = parse_inputs(options.input)
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(local_service(on_line=print)).url
        start_s = time.perf_counter()
        results = asyncio.run(run_load(url, inputs, options.rate, options.duration, options.deadline))
        summary = summarise(results, time.perf_counter() - start_s)
    report("how does the service behave at a constant request rate?", vars(options), summary)


if __name__ == "__main__":
    main()
