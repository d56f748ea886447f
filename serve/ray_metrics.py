"""Exports the metrics of `serve.telemetry` with Ray's, from processes that Ray has started."""

import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.serve import metrics

from serve import telemetry
from serve.telemetry import Counter, Gauge, Histogram, Metric

PERIOD_S = 5.0
"""Ray exports every 10 s, and only gauges that were set since the last time."""


class RayBackend:
    """Has an instrument of `ray.serve.metrics` for each metric. Gauges keep their values until they are set again."""

    def __init__(self) -> None:
        self._instruments = {metric.name: _instrument(metric) for metric in telemetry.METRICS}
        self._gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def start(self) -> None:
        """Sets the gauges again, every `PERIOD_S`, until the process ends."""
        threading.Thread(target=self._run, name="gauges", daemon=True).start()

    def record(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        if isinstance(metric, Gauge):
            self._gauges[metric.name, tuple(labels.items())] = value
        self._record(metric.name, value, labels)

    def record_gauges(self) -> None:
        """Records the last value of each gauge."""
        for (name, labels), value in list(self._gauges.items()):
            self._record(name, value, dict(labels))

    def _record(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        # Not `inc` of counters, which rejects 0.
        self._instruments[name]._record(value, dict(labels))

    def _run(self) -> None:
        while True:
            time.sleep(PERIOD_S)
            self.record_gauges()


def use_ray_metrics() -> bool:
    """Call once in the constructor of an actor. Returns False, and exports nothing, outside Ray, as in tests."""
    if not ray.is_initialized():
        return False
    backend = RayBackend()
    backend.start()
    telemetry.use_backend(backend)
    return True


def _instrument(metric: Metric) -> Any:
    match metric:
        case Counter():
            return metrics.Counter(metric.name, metric.help, metric.labels)
        case Gauge():
            return metrics.Gauge(metric.name, metric.help, metric.labels)
        case Histogram():
            return metrics.Histogram(metric.name, metric.help, list(metric.buckets), metric.labels)
    raise TypeError(type(metric))
