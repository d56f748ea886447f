"""Compares the throughput of the service without telemetry, with metrics, and with metrics and traces.

    scripts/bench telemetry

One process has the application of the ingress and a model replica, with Ray's instruments for the metrics. The variants
run in turns, so a change of the machine's speed affects all of them. Spans are created and batched, and then dropped.
As the speed of a machine may vary by more than telemetry costs, the times of its calls are summed up too.
"""

import argparse
import asyncio
import logging
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import ray
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchmarks.api.ingress_process import ray_replacements
from benchmarks.report import print_progress, report, stop_on_sigterm
from benchmarks.service import POOL, predict, run_requests
from serve import ingress, telemetry, tracing
from serve.events import Event
from serve.generation_plan import GenerationPlan
from serve.model_replica import ModelReplica
from serve.settings import Settings
from serve.telemetry import Backend, Metric, NoBackend
from serve.tracing import Tracer

OFF, METRICS, TRACES = "off", "metrics", "metrics and traces"
VARIANTS = (OFF, METRICS, TRACES)
CALLS = 100_000


class CountingExporter(SpanExporter):
    """Drops all spans."""

    def __init__(self) -> None:
        self.count = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.count += len(spans)
        return SpanExportResult.SUCCESS


class LocalPool:
    """A replica of this process in place of a pool's client."""

    def __init__(self, replica: ModelReplica) -> None:
        self._replica = replica

    async def generate(
        self, plan: GenerationPlan, image: Any, mask: Any, loras: Any, log_id: str
    ) -> AsyncGenerator[Event, None]:
        async for event in self._replica.generate(plan, image, mask, loras, log_id, trace=tracing.carrier()):
            yield event


class TimedBackend:
    """Adds up the time that another backend takes to record values."""

    def __init__(self, backend: Backend, clock: Callable[[], float] = time.perf_counter) -> None:
        self._backend = backend
        self._clock = clock
        self.seconds = 0.0

    def record(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        start_s = self._clock()
        self._backend.record(metric, value, labels)
        self.seconds += self._clock() - start_s


class Variants:
    """Turns telemetry on and off."""

    def __init__(self) -> None:
        self.exporter = CountingExporter()
        self.backend = TimedBackend(telemetry.use_backend(NoBackend()))
        self._tracer = Tracer(BatchSpanProcessor(self.exporter))

    def use(self, variant: str) -> None:
        telemetry.use_backend(NoBackend() if variant == OFF else self.backend)
        tracing.use_tracer(self._tracer if variant == TRACES else None)


def order_of(number: int) -> tuple[str, ...]:
    """The variants in the order of round `number`: each one is the first in turn."""
    first = number % len(VARIANTS)
    return VARIANTS[first:] + VARIANTS[:first]


def ratios(images_per_s: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Of each variant to `OFF`, round by round, and their medians."""
    by_round = {
        variant: [value / off for value, off in zip(images_per_s[variant], images_per_s[OFF], strict=True)]
        for variant in (METRICS, TRACES)
    }
    return {"ratio": {variant: statistics.median(each) for variant, each in by_round.items()}, "ratios": by_round}


def seconds_per_span_off(calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """The time that a span takes while tracing is off."""
    tracing.use_tracer(None)
    start_s = clock()
    for _ in range(calls):
        with tracing.span("a", {"flux.pool": POOL}):
            pass
    return (clock() - start_s) / calls


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    pools = {POOL: {"model": "dev", "max_in_flight": 256}}
    settings = Settings.model_validate({"state_folder": str(folder), "pools": pools})
    pool = LocalPool(ModelReplica(settings, POOL))  # Exports metrics, because Ray runs.
    variants = Variants()
    variants.use(TRACES)  # The application traces requests only if tracing is on when it is built.
    with mock.patch.multiple(ingress, **ray_replacements(port=8000) | {"PoolClient": lambda *_: pool}):
        service = ingress.Ingress(settings, {POOL: mock.Mock()})
        logging.getLogger("serve").setLevel(logging.WARNING)
        app = service.__serve_build_asgi_app__()
        async with app.router.lifespan_context(app):
            await service.wait_until_open()
            variants.backend.seconds = 0.0
            images_per_s = await run_rounds(httpx.ASGITransport(app), variants, options)
    spans = variants.exporter.count / (options.rounds * options.requests)
    recorded_s = sum(options.requests / each for variant in (METRICS, TRACES) for each in images_per_s[variant])
    shares = {
        "share_of_metrics": variants.backend.seconds / recorded_s,
        "share_of_spans_off": spans * seconds_per_span_off(CALLS) * statistics.median(images_per_s[OFF]),
    }
    return ratios(images_per_s) | {"images_per_s": images_per_s, "spans": spans} | shares


async def run_rounds(
    transport: httpx.ASGITransport, variants: Variants, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Images per second of each variant, by round."""
    images_per_s: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=600) as client:
        for number in range(options.rounds):
            for variant in order_of(number):
                print_progress(f"round {number + 1} of {options.rounds}: {variant}")
                variants.use(variant)
                result = await run_requests(
                    partial(predict, client), options.requests, options.in_flight, options.steps
                )
                images_per_s[variant].append(result["images_per_s"])
    return images_per_s


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--requests", type=int, default=48, help="requests per round and variant")
    parser.add_argument("--in-flight", type=int, default=16, help="maximum number of concurrent requests")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps of each image")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of each variant")
    options = parser.parse_args()
    stop_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="flux-", ignore_cleanup_errors=True) as folder:
        ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        try:
            result = asyncio.run(measure(options, Path(folder)))
        finally:
            ray.shutdown()
    report("how much throughput do metrics and traces cost?", vars(options), result)


if __name__ == "__main__":
    main()
