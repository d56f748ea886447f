"""Compares orders of work within a replica: by deadlines, by turns, first come first served, and always in batches.

    scripts/bench scheduling
    scripts/bench scheduling --engine --save

Requests of mixed sizes, steps and numbers of images are simulated on a virtual clock, with the costs of a GPU and of a
CPU. With `--engine`, small ones also run on the embedded model. Results are relative to first come first served.
`--save` writes `benchmarks/results/scheduling.json`, which `python -m benchmarks.performance` reads.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, get_args

from benchmarks.geometry import make_checkpoint
from benchmarks.report import make_report, percentiles, print_progress
from benchmarks.scheduling.simulation import POLICIES, PolicyName, Simulation
from benchmarks.scheduling.table import markdown_table
from benchmarks.scheduling.workloads import DEVICES, WORKLOADS, make_workload
from serve.engine.engine import Engine
from serve.engine.request import EngineEvent, FinalEvent, GenerationRequest
from serve.settings import PoolSettings, SchedulingPolicy

BASELINE: PolicyName = "first_come"
RESULT_FILE = Path(__file__).parents[1] / "results" / "scheduling.json"
Figures = Mapping[str, float]


def simulate(requests: int, seeds: int) -> list[dict[str, Any]]:
    """One row for each device, workload and policy: means over the seeds, relative to the baseline."""
    rows = []
    for device_name, device in DEVICES.items():
        for workload_name, kind in WORKLOADS.items():
            print_progress(f"simulating: {device_name}, {workload_name}")
            workloads = [make_workload(kind, device, requests, seed) for seed in range(seeds)]
            figures = {
                policy: _mean(
                    _figures(simulation.latencies_s, simulation.now_s)
                    for simulation in (Simulation(policy, device, each, kind.in_flight).run() for each in workloads)
                )
                for policy in POLICIES
            }
            rows += _relative_rows(figures, {"device": device_name, "workload": workload_name})
    return rows


def run_engine(requests: int, in_flight: int) -> list[dict[str, Any]]:
    """The same for the embedded model on a CPU, for a burst and for a closed loop."""
    checkpoint = make_checkpoint("embedded", "float32", "cpu")
    orders: dict[PolicyName, SchedulingPolicy] = {
        "first_come": "turns",
        **{policy: policy for policy in get_args(SchedulingPolicy)},
    }
    rows = []
    for workload, clients in (("burst", requests), (f"closed, {in_flight} in flight", in_flight)):
        figures = {}
        for policy, setting in orders.items():
            print_progress(f"generating: {workload}, {policy}")
            engine = Engine(checkpoint, PoolSettings(model="dev", scheduling_policy=setting, num_threads=1))
            engine.start()
            engine.warm_up([(256, 256), (512, 512)])
            # First come, first served: the engine gets one request at a time, and the others wait before it.
            running = 1 if policy == BASELINE else clients
            figures[policy] = _figures(*_generate(engine, _small_requests(requests), clients, running))
            engine.stop()
        rows += _relative_rows(figures, {"device": "embedded model", "workload": workload})
    return rows


def _generate(
    engine: Engine, requests: Sequence[GenerationRequest], clients: int, running: int
) -> tuple[list[float], float]:
    """Latencies, and the time of all. `clients` requests have arrived and not ended; `running` are in the engine."""
    ended: SimpleQueue[int] = SimpleQueue()

    def listener(number: int) -> Callable[[EngineEvent], None]:
        return lambda event: ended.put(number) if isinstance(event, FinalEvent) else None

    start_s = time.perf_counter()
    arrivals_s = [start_s] * clients
    latencies_s: list[float] = []
    for submitted in range(running):
        engine.submit(requests[submitted], listener(submitted))
    submitted = running
    while len(latencies_s) < len(requests):
        number = ended.get()
        now_s = time.perf_counter()
        latencies_s.append(now_s - arrivals_s[number])
        arrivals_s.append(now_s)
        if submitted < len(requests):
            engine.submit(requests[submitted], listener(submitted))
            submitted += 1
    return latencies_s, time.perf_counter() - start_s


def _small_requests(count: int) -> list[GenerationRequest]:
    generator = random.Random(0)
    return [
        GenerationRequest(
            prompt="a red sailboat",
            size=generator.choice(((256, 256), (512, 512))),
            steps=generator.choice((2, 4, 12)),
            seeds=tuple(range(generator.choice((1, 1, 2)))),
            guidance=3.5,
        )
        for _ in range(count)
    ]


def _figures(latencies_s: Sequence[float], total_s: float) -> Figures:
    return {
        "mean_s": statistics.mean(latencies_s),
        "p95_s": percentiles(latencies_s)["p95_s"],
        "slowest_s": max(latencies_s),
        "throughput": len(latencies_s) / total_s,
    }


def _mean(figures: Iterable[Figures]) -> Figures:
    rows = list(figures)
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}


def _relative_rows(figures: Mapping[PolicyName, Figures], labels: dict[str, str]) -> list[dict[str, Any]]:
    baseline = figures[BASELINE]
    return [
        labels | {"policy": policy} | {name.removesuffix("_s"): round(row[name] / baseline[name], 3) for name in row}
        for policy, row in figures.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="scheduling", description=str(__doc__).splitlines()[0])
    parser.add_argument("--requests", type=int, default=80, metavar="N", help="simulated requests of each workload")
    parser.add_argument("--seeds", type=int, default=12, metavar="N", help="simulated workloads of each kind")
    parser.add_argument("--engine", action="store_true", help="also run the embedded model")
    parser.add_argument("--engine-requests", type=int, default=16, metavar="N", help="requests of each of its runs")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/scheduling.json")
    options = parser.parse_args(arguments)
    rows = simulate(options.requests, options.seeds)
    if options.engine:
        rows += run_engine(options.engine_requests, in_flight=min(8, options.engine_requests))
    question = "how long do requests take by the order of work, in shares of first come, first served?"
    result = make_report(question, vars(options), {"rows": rows})
    print(json.dumps(result))
    if options.save:
        RESULT_FILE.write_text(json.dumps({"table": markdown_table(rows)} | result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
