"""How does the service behave when requests come at a constant rate, whatever it does? (open loop, over HTTP)

    scripts/bench load --rate 1 --duration 30 --input num_inference_steps=4 --input megapixels=0.25

Requests are sent on a fixed clock and never wait for each other, so a slow service cannot hide behind a slow client.
Stage times are those that the answers carry in `Server-Timing`.
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

from benchmarks.report import percentiles, report
from serve.launch.subprocess_service import local_service
from serve.settings import read_secrets

PROGRESS_EVERY_S = 5.0
MAX_REQUESTS = 10_000


@dataclass(frozen=True)
class Answer:
    """What became of one request; `latency_s` counts from the moment it was due."""

    outcome: str
    latency_s: float
    stages_ms: dict[str, float] = field(default_factory=dict)


async def run_load(url: str, inputs: dict[str, Any], rate: float, duration_s: float, deadline_s: float) -> list[Answer]:
    """Sends `rate` requests a second for `duration_s` and waits for every answer."""
    total = min(MAX_REQUESTS, int(rate * duration_s))
    answers: list[Answer] = []
    begun = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=deadline_s, headers=_token(), limits=_unlimited()) as client:
        progress = asyncio.create_task(_tell(answers, total, begun))
        async with asyncio.TaskGroup() as senders:
            for number in range(total):
                due = begun + number / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                senders.create_task(_send(client, {**inputs, "seed": number}, due, deadline_s, answers))
        progress.cancel()
    return answers


async def _send(
    client: httpx.AsyncClient, inputs: dict[str, Any], due: float, deadline_s: float, answers: list[Answer]
) -> None:
    """One request to its end: a prediction that outlasts the blocking wait is asked for again until the deadline."""
    outcome, stages = "error", {}
    with contextlib.suppress(httpx.HTTPError):
        answer = await client.post("/v1/predictions", json={"input": inputs}, headers={"Prefer": "wait=60"})
        while _is_pending(answer) and time.perf_counter() - due < deadline_s:
            await asyncio.sleep(0.5)
            answer = await client.get(f"/v1/predictions/{answer.json()['id']}")
        outcome = "refused" if answer.status_code == 429 else _status(answer)
        stages = parse_server_timing(answer.headers.get("server-timing", ""))
    latency_s = time.perf_counter() - due
    if outcome == "succeeded" and latency_s > deadline_s:
        outcome = "late"
    answers.append(Answer(outcome, latency_s, stages))


def parse_server_timing(header: str) -> dict[str, float]:
    """`queue;dur=310, denoise;dur=2104` as milliseconds by stage."""
    stages = {}
    for entry in filter(None, (part.strip() for part in header.split(","))):
        name, *parameters = entry.split(";")
        durations = [text.strip().removeprefix("dur=") for text in parameters if text.strip().startswith("dur=")]
        if durations:
            stages[name.strip()] = float(durations[0])
    return stages


def _is_pending(answer: httpx.Response) -> bool:
    return answer.is_success and answer.json()["status"] in ("starting", "processing")


def _status(answer: httpx.Response) -> str:
    return str(answer.json()["status"]) if answer.is_success else f"http {answer.status_code}"


async def _tell(answers: list[Answer], total: int, begun: float) -> None:
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        done = sum(answer.outcome == "succeeded" for answer in answers)
        print(f"{time.perf_counter() - begun:6.0f} s  {len(answers)}/{total} answered, {done} pictures", flush=True)


def summarise(answers: Sequence[Answer], elapsed_s: float) -> dict[str, Any]:
    """Outcomes, latencies of what succeeded, median stage times, and goodput: pictures in time, a second."""
    outcomes: dict[str, int] = defaultdict(int)
    stages: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        outcomes[answer.outcome] += 1
        for name, milliseconds in answer.stages_ms.items():
            stages[name].append(milliseconds)
    return {
        "outcomes": dict(outcomes),
        "latency": percentiles(answer.latency_s for answer in answers if answer.outcome in ("succeeded", "late")),
        "goodput_per_s": round(outcomes["succeeded"] / elapsed_s, 4),
        "median_stages_ms": {name: round(median(values), 1) for name, values in stages.items()},
        "elapsed_s": round(elapsed_s, 2),
    }


def _token() -> dict[str, str]:
    token = read_secrets().api_token
    return {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}


def _unlimited() -> httpx.Limits:
    return httpx.Limits(max_connections=None, max_keepalive_connections=None)


def _input(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def main() -> None:
    parser = argparse.ArgumentParser(description="Send requests at a constant rate and tell how they fared.")
    parser.add_argument("--url", help="a service that runs already; without one the embedded service is started")
    parser.add_argument("--rate", type=float, default=0.5, help="requests a second")
    parser.add_argument("--duration", type=float, default=30, help="seconds to go on sending")
    parser.add_argument("--deadline", type=float, default=60, help="seconds after which an answer is of no use")
    parser.add_argument("--input", action="append", default=[], metavar="KEY=VALUE", help="any input of the API")
    options = parser.parse_args()
    inputs = {"prompt": "a red sailboat", **dict(_input(text) for text in options.input)}
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(local_service(on_line=print)).url
        begun = time.perf_counter()
        answers = asyncio.run(run_load(url, inputs, options.rate, options.duration, options.deadline))
        result = summarise(answers, time.perf_counter() - begun)
    report("how does the service behave at a constant rate", vars(options), result)


if __name__ == "__main__":
    main()
