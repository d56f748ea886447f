"""Compares the throughput of the service over HTTP with that of its model replica alone.

    scripts/bench service

Both sides process the same requests, including the safety check and the encoding. One side is a running service, the
other a process that calls `ModelReplica` directly. They run in turns, so a change of the machine's speed affects both.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx

from benchmarks.report import report, stop_on_sigterm
from serve.deployment import replica_environment
from serve.launch.subprocess_service import ROOT, LocalService, local_service
from serve.settings import Settings

POOL = "dev-bf16"
NO_REPLICAS = {"min_replicas": 0, "initial_replicas": 0}
SETTINGS = [
    f"pools.{pool}.scaling.{key}={value}" for pool in ("dev-fp8", "schnell") for key, value in NO_REPLICAS.items()
]

Generate = Callable[[dict[str, Any]], Awaitable[float]]
"""Processes one request's inputs and returns the mean batch size that the engine reports for it."""


async def run_requests(generate: Generate, requests: int, in_flight: int, steps: int) -> dict[str, float]:
    """Runs all requests, `in_flight` at a time. Returns images per second and the mean batch size."""
    slots = asyncio.Semaphore(in_flight)
    done = 0

    async def run_one(number: int) -> float:
        nonlocal done
        async with slots:
            mean_batch = await generate(_inputs(number, steps))
        done += 1
        if done % 16 == 0:
            print(f"    {done}/{requests}", flush=True)
        return mean_batch

    start_s = time.perf_counter()
    batches = await asyncio.gather(*(run_one(number) for number in range(requests)))
    elapsed_s = time.perf_counter() - start_s
    return {"images_per_s": requests / elapsed_s, "mean_batch": statistics.mean(batches)}


def _inputs(number: int, steps: int) -> dict[str, Any]:
    return {"prompt": f"boat number {number}", "seed": number, "megapixels": "0.25", "num_inference_steps": steps}


async def predict(http: httpx.AsyncClient, inputs: dict[str, Any]) -> float:
    """The mean batch of a prediction. Raises RuntimeError if it fails."""
    response = await http.post("/v1/predictions", json={"input": inputs}, headers={"Prefer": "wait=55"})
    return await finish(http, response.raise_for_status().json())


async def finish(http: httpx.AsyncClient, prediction: dict[str, Any]) -> float:
    """The mean batch of a prediction, when it has ended. Raises RuntimeError if it fails."""
    while prediction["status"] in ("starting", "processing"):
        prediction = (await http.get(f"/v1/predictions/{prediction['id']}")).raise_for_status().json()
    if prediction["status"] != "succeeded":
        raise RuntimeError(prediction["error"])
    return float(prediction["metrics"]["mean_batch"])


async def run_over_http(service: LocalService, options: argparse.Namespace) -> dict[str, float]:
    async with httpx.AsyncClient(base_url=service.url, timeout=600) as client:
        return await run_requests(partial(predict, client), options.requests, options.in_flight, options.steps)


async def run_replica(rounds: int, options: argparse.Namespace) -> None:
    """Runs the requests through a `ModelReplica` of this process.

    Prints "ready" and then one line for each round, all as JSON. Each round starts when a line arrives on stdin.
    """
    from serve.events import Finished
    from serve.generation_plan import make_plan
    from serve.inputs import validate_inputs
    from serve.model_replica import ModelReplica

    settings = Settings()
    replica = ModelReplica(settings, POOL)

    async def generate(inputs: dict[str, Any]) -> float:
        validated, _ = validate_inputs(inputs, settings.max_prompt_chars)
        events = [event async for event in replica.generate(make_plan(validated, settings, 0))]
        assert isinstance(events[-1], Finished)
        return events[-1].mean_batch

    print(json.dumps("ready"), flush=True)
    for _ in range(rounds):
        sys.stdin.readline()
        result = await run_requests(generate, options.requests, options.in_flight, options.steps)
        print(json.dumps(result), flush=True)


class ReplicaProcess:
    """Runs `run_replica` in a child process with the environment of a replica."""

    def __init__(self, options: argparse.Namespace) -> None:
        arguments = [f"--{key.replace('_', '-')}={value}" for key, value in vars(options).items() if key != "bare"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.service", "--bare", *arguments],
            cwd=ROOT,
            env=os.environ | replica_environment(Settings().pools[POOL]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read_json()

    def run_round(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        result: dict[str, float] = self._read_json()
        return result

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _read_json(self) -> Any:
        """The next JSON line of the process. Prints the lines before it. Raises RuntimeError if the process ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                return json.loads(line)
            except ValueError:
                print(line, end="", flush=True)
        raise RuntimeError("the replica process ended unexpectedly")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    http, replica_alone = [], []
    assignments = [part for setting in SETTINGS for part in ("--set", setting)]
    with local_service(*assignments, on_line=print) as service:
        replica = ReplicaProcess(options)
        try:
            for number in range(options.rounds):
                print(f"round {number + 1} of {options.rounds}: replica alone", flush=True)
                replica_alone.append(replica.run_round())
                print(f"round {number + 1} of {options.rounds}: over HTTP", flush=True)
                http.append(asyncio.run(run_over_http(service, options)))
        finally:
            replica.stop()
    ratios = [a["images_per_s"] / b["images_per_s"] for a, b in zip(http, replica_alone, strict=True)]
    return {"ratio": statistics.median(ratios), "ratios": ratios, "http": http, "engine": replica_alone}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--requests", type=int, default=64, help="requests per round")
    parser.add_argument("--in-flight", type=int, default=16, help="maximum number of concurrent requests")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps of each image")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each side")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    stop_on_sigterm()
    if options.bare:
        asyncio.run(run_replica(options.rounds, options))
    else:
        question = "how does the throughput over HTTP compare with that of the replica alone?"
        report(question, vars(options), measure(options))


if __name__ == "__main__":
    main()
