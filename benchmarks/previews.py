"""Compares the throughput of the service while a client watches previews with that while nobody does.

    scripts/bench previews

Both sides process the same requests over HTTP. On one side, one of the requests in flight is that of a client that
watches it as the playground does: it reads the stream of the prediction, with previews. The sides alternate in one run,
so a change of the machine's speed affects both.
"""

import argparse
import asyncio
import json
import statistics
from typing import Any

import httpx

from benchmarks.report import report, stop_on_sigterm
from benchmarks.service import SETTINGS, finish, predict, run_requests
from serve.launch.subprocess_service import local_service

WATCHED_PARTS = (False, True)


class Client:
    """Runs predictions; if it `watches`, the first of every `in_flight` ones is watched."""

    def __init__(self, http: httpx.AsyncClient, watches: bool, in_flight: int) -> None:
        self.previews = 0
        """The number of previews that were received."""
        self._http = http
        self._watches = watches
        self._in_flight = in_flight

    async def generate(self, inputs: dict[str, Any]) -> float:
        """The mean batch of a prediction. Raises RuntimeError if it fails."""
        if not self._watches or inputs["seed"] % self._in_flight:
            return await predict(self._http, inputs)
        response = await self._http.post("/v1/predictions", json={"input": inputs, "stream": True})
        prediction = response.raise_for_status().json()
        await self._watch(prediction["id"])
        return await finish(self._http, prediction)

    async def _watch(self, prediction_id: str) -> None:
        path = f"/v1/predictions/{prediction_id}/stream"
        async with self._http.stream("GET", path, params={"progress": "true"}) as events:
            async for line in events.aiter_lines():
                if line.startswith('data: {"step"'):
                    self.previews += "preview" in json.loads(line.removeprefix("data: "))


async def run_round(url: str, watches: bool, options: argparse.Namespace) -> dict[str, float]:
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        client = Client(http, watches, options.in_flight)
        result = await run_requests(client.generate, options.requests, options.in_flight, options.steps)
    if watches and not client.previews:
        raise RuntimeError("the client received no previews")
    return result | {"previews": client.previews}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds: dict[bool, list[dict[str, float]]] = {watches: [] for watches in WATCHED_PARTS}
    assignments = [part for setting in SETTINGS for part in ("--set", setting)]
    with local_service(*assignments, on_line=print) as service:
        for number in range(options.rounds):
            # Neither side is always the first one.
            for watches in WATCHED_PARTS if number % 2 == 0 else WATCHED_PARTS[::-1]:
                print(
                    f"round {number + 1} of {options.rounds}: {'with' if watches else 'without'} previews", flush=True
                )
                rounds[watches].append(asyncio.run(run_round(service.url, watches, options)))
    ratios = [a["images_per_s"] / b["images_per_s"] for a, b in zip(rounds[True], rounds[False], strict=True)]
    return {"ratio": statistics.median(ratios), "ratios": ratios, "with": rounds[True], "without": rounds[False]}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--requests", type=int, default=64, help="requests per round")
    parser.add_argument("--in-flight", type=int, default=16, help="maximum number of concurrent requests")
    parser.add_argument("--steps", type=int, default=12, help="denoising steps of each image")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each side")
    options = parser.parse_args()
    stop_on_sigterm()
    question = "how does the throughput with a client that watches previews compare with that without?"
    report(question, vars(options), measure(options))


if __name__ == "__main__":
    main()
