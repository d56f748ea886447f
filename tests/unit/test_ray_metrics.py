"""The backend of Ray, with fake instruments. tests/cluster/test_metrics.py reads what a running service exports."""

from collections.abc import Mapping
from typing import Any

import pytest

from serve import ray_metrics, telemetry
from serve.ray_metrics import RayBackend, use_ray_metrics
from serve.telemetry import METRICS, Metric


class FakeInstrument:
    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.recorded: list[tuple[float, dict[str, str]]] = []

    def _record(self, value: float, labels: dict[str, str]) -> None:
        self.recorded.append((value, dict(labels)))
        labels["route"] = "added by Ray"


@pytest.fixture
def instruments(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, FakeInstrument]:
    created: dict[str, FakeInstrument] = {}

    def create(metric: Metric) -> FakeInstrument:
        return created.setdefault(metric.name, FakeInstrument(metric))

    monkeypatch.setattr(ray_metrics, "_instrument", create)
    return created


def test_values_reach_the_instrument_of_their_metric(instruments: Mapping[str, FakeInstrument]) -> None:
    backend, labels = RayBackend(), {"pool": "a"}
    backend.record(telemetry.IMAGES, 0, labels)
    backend.record(telemetry.QUEUE_SECONDS, 1.5, labels)
    assert instruments.keys() == {metric.name for metric in METRICS}
    assert instruments[telemetry.IMAGES.name].recorded == [(0, {"pool": "a"})]
    assert instruments[telemetry.QUEUE_SECONDS.name].recorded == [(1.5, {"pool": "a"})]
    assert labels == {"pool": "a"}


def test_last_values_of_gauges_are_recorded_again_and_nothing_else(instruments: Mapping[str, FakeInstrument]) -> None:
    backend = RayBackend()
    backend.record(telemetry.IMAGES, 1, {"pool": "a"})
    for value, pool in ((1, "a"), (2, "a"), (3, "b")):
        backend.record(telemetry.LORAS, value, {"pool": pool})
    loras = instruments[telemetry.LORAS.name].recorded
    loras.clear()
    backend.record_gauges()
    assert loras == [(2, {"pool": "a"}), (3, {"pool": "b"})]
    assert len(instruments[telemetry.IMAGES.name].recorded) == 1


def test_nothing_is_exported_outside_ray() -> None:
    previous: Any = telemetry._backend
    assert not use_ray_metrics()
    assert telemetry._backend is previous
