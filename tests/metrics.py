"""A backend that keeps the recorded metrics in memory."""

from collections import defaultdict
from collections.abc import Mapping

from serve.telemetry import Gauge, Histogram, Metric

Labels = tuple[str, ...]
"""The values of a metric's labels, in their order."""


class RecordedMetrics:
    """What was recorded, by metric and labels."""

    def __init__(self) -> None:
        self.values: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
        """Of counters and gauges."""
        self.observations: defaultdict[str, defaultdict[Labels, list[float]]] = defaultdict(lambda: defaultdict(list))

    def record(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        key = tuple(labels[name] for name in metric.labels)
        match metric:
            case Histogram():
                self.observations[metric.name][key].append(value)
            case Gauge():
                self.values[metric.name][key] = value
            case _:
                values = self.values[metric.name]
                values[key] = values.get(key, 0) + value

    def value(self, metric: Metric, *labels: str) -> float:
        """Of a counter or gauge; 0 if nothing was recorded."""
        return self.values[metric.name].get(labels, 0)

    def increased(self, metric: Metric) -> dict[Labels, float]:
        """The counts of a counter, or the values of a gauge, that are not 0."""
        return {labels: value for labels, value in self.values[metric.name].items() if value}

    def observed(self, metric: Metric, *labels: str) -> list[float]:
        return self.observations[metric.name][labels]
