"""Prometheus reads every metric from a running service, under the names that the dashboard and the alerts use."""

from collections.abc import Iterator

import httpx
import pytest

from serve import telemetry
from serve.launch.subprocess_service import LocalService, free_port, local_service
from tests.cluster.client import SMALL, predict, until
from tests.prometheus import exported_names, expressions, metric_names

NOT_AFTER_ONE_PREDICTION = {
    *telemetry.GPU_MEMORY.exported_names,
    *telemetry.LORA_DOWNLOAD_SECONDS.exported_names,
}
"""They need a GPU, or a LoRA that is downloaded."""


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """What the service prints before it is ready."""
    return []


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def service(environment: dict[str, str], metrics_port: int, lines: list[str]) -> Iterator[LocalService]:
    arguments = ("--metrics-port", str(metrics_port))
    with local_service(*arguments, environment=environment, on_line=lines.append) as running_service:
        yield running_service


def test_service_exports_every_metric_after_one_prediction(
    service: LocalService, metrics_port: int, lines: list[str]
) -> None:
    (url,) = [line.removeprefix("metrics: ") for line in lines if line.startswith("metrics: ")]
    assert httpx.URL(url).port == metrics_port
    assert predict(service, **SMALL, prompt="a red sailboat")["status"] == "succeeded"
    own = {name for metric in telemetry.METRICS for name in metric.exported_names}
    used = set[str]().union(*map(metric_names, expressions().values()))
    expected = (own | used) - NOT_AFTER_ONE_PREDICTION
    missing = until(
        lambda: expected - exported_names(httpx.get(url, timeout=30).raise_for_status().text),
        lambda names: not names,
    )
    assert not missing
