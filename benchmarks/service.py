"""How much of the bare engine's throughput is left when requests come over HTTP? (a ratio, measured in one run)

    scripts/bench service

The same requests, with the same safety check and encoding, go to one replica's code in a process of its own, and to a
running service over HTTP; the two take turns, so a machine that changes its speed changes it for both.
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
from typing import Any

import httpx

from benchmarks.report import report
from serve.deployment import replica_environment
from serve.launch.subprocess_service import ROOT, LocalService, local_service
from serve.settings import Settings

POOL = "dev-bf16"
IDLE = {"min_replicas": 0, "initial_replicas": 0}
SETTINGS = [f"pools.{pool}.scaling.{key}={value}" for pool in ("dev-fp8", "schnell") for key, value in IDLE.items()]

Draw = Callable[[dict[str, Any]], Awaitable[float]]
"""Draws one request, and returns the mean batch that the engine reports for it."""


async def run(draw: Draw, requests: int, in_flight: int, steps: int) -> dict[str, float]:
    """All requests, `in_flight` at a time: pictures a second, and the mean batch."""
    room = asyncio.Semaphore(in_flight)
    done = 0

    async def one(number: int) -> float:
        nonlocal done
        async with room:
            mean_batch = await draw(_inputs(number, steps))
        done += 1
        if done % 16 == 0:
            print(f"    {done}/{requests}", flush=True)
        return mean_batch

    begun = time.perf_counter()
    batches = await asyncio.gather(*(one(number) for number in range(requests)))
    elapsed_s = time.perf_counter() - begun
    return {"pictures_per_s": requests / elapsed_s, "mean_batch": statistics.mean(batches)}


def _inputs(number: int, steps: int) -> dict[str, Any]:
    return {"prompt": f"boat number {number}", "seed": number, "megapixels": "0.25", "num_inference_steps": steps}


async def over_http(service: LocalService, options: argparse.Namespace) -> dict[str, float]:
    async with httpx.AsyncClient(base_url=service.url, timeout=600) as client:

        async def draw(inputs: dict[str, Any]) -> float:
            answer = await client.post("/v1/predictions", json={"input": inputs}, headers={"Prefer": "wait=60"})
            prediction = answer.raise_for_status().json()
            while prediction["status"] in ("starting", "processing"):
                prediction = (await client.get(f"/v1/predictions/{prediction['id']}")).json()
            if prediction["status"] != "succeeded":
                raise RuntimeError(prediction["error"])
            return float(prediction["metrics"]["mean_batch"])

        return await run(draw, options.requests, options.in_flight, options.steps)


async def bare(rounds: int, options: argparse.Namespace) -> None:
    """The same work by the replica's own code, one JSON line a round; a round begins when a line is read."""
    from serve.events import Finished
    from serve.inputs import validate_inputs
    from serve.model_replica import ModelReplica
    from serve.plan import make_plan

    settings = Settings()
    replica = ModelReplica(settings, POOL)

    async def draw(inputs: dict[str, Any]) -> float:
        read, _ = validate_inputs(inputs, settings.max_prompt_chars)
        events = [event async for event in replica.generate(make_plan(read, settings, 0))]
        assert isinstance(events[-1], Finished)
        return events[-1].mean_batch

    print(json.dumps("ready"), flush=True)
    for _ in range(rounds):
        sys.stdin.readline()
        print(json.dumps(await run(draw, options.requests, options.in_flight, options.steps)), flush=True)


class BareEngine:
    """`bare` in a process of its own, with the threads and the memory that a replica has."""

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
        self._next_json()

    def round(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        result: dict[str, float] = self._next_json()
        return result

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _next_json(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                return json.loads(line)
            except ValueError:
                print(line, end="", flush=True)
        raise RuntimeError("the bare engine ended before its time")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    http, engine = [], []
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    with local_service(*settings, on_line=print) as service:
        alone = BareEngine(options)
        try:
            for number in range(options.rounds):
                print(f"round {number + 1} of {options.rounds}: bare engine", flush=True)
                engine.append(alone.round())
                print(f"round {number + 1} of {options.rounds}: over HTTP", flush=True)
                http.append(asyncio.run(over_http(service, options)))
        finally:
            alone.stop()
    ratios = [a["pictures_per_s"] / b["pictures_per_s"] for a, b in zip(http, engine, strict=True)]
    return {"ratio": statistics.median(ratios), "ratios": ratios, "http": http, "engine": engine}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the service over HTTP with its bare engine.")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        asyncio.run(bare(options.rounds, options))
    else:
        report("how much of the bare engine's throughput is left over HTTP", vars(options), measure(options))


if __name__ == "__main__":
    main()
