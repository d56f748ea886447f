import re

import pytest

from serve import telemetry
from serve.telemetry import METRICS, Counter, Gauge, Histogram, Metric, batch_label, size_label
from tests.metrics import RecordedMetrics

BOUNDED_LABELS = {
    "batch",
    "kind",
    "lost",
    "megapixels",
    "outcome",
    "pool",
    "reason",
    "result",
    "stage",
    "status",
    "tier",
}
"""Their values are pools of the settings, or words of this project."""
ADDED_BY_RAY = {"application", "deployment", "replica", "route"}


def test_metric_names_are_unique_and_not_those_of_ray() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert not [metric.name for metric in METRICS if not re.fullmatch(r"flux_[a-z_]+(?<!_total)", metric.name)]


def test_labels_are_bounded() -> None:
    assert {label for metric in METRICS for label in metric.labels} == BOUNDED_LABELS
    assert not BOUNDED_LABELS & ADDED_BY_RAY


def test_buckets_increase() -> None:
    histograms = [metric for metric in METRICS if isinstance(metric, Histogram)]
    assert histograms
    for histogram in histograms:
        assert list(histogram.buckets) == sorted(set(histogram.buckets))
        assert histogram.buckets[0] > 0


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        (Counter("flux_a", ""), ("ray_flux_a_total",)),
        (Gauge("flux_a", ""), ("ray_flux_a",)),
        (Histogram("flux_a", ""), ("ray_flux_a_bucket", "ray_flux_a_count", "ray_flux_a_sum")),
    ],
)
def test_exported_names_follow_prometheus(metric: Metric, names: tuple[str, ...]) -> None:
    assert metric.exported_names == names


def test_values_go_to_the_backend(metrics: RecordedMetrics) -> None:
    telemetry.IMAGES.add(pool="a")
    telemetry.IMAGES.add(2, pool="a")
    telemetry.LORAS.set(5, pool="a")
    telemetry.QUEUE_SECONDS.observe(0.5, pool="a")
    assert metrics.value(telemetry.IMAGES, "a") == 3
    assert metrics.value(telemetry.LORAS, "a") == 5
    assert metrics.observed(telemetry.QUEUE_SECONDS, "a") == [0.5]


def test_wrong_labels_raise_without_a_backend() -> None:
    with pytest.raises(TypeError, match="flux_images"):
        telemetry.IMAGES.add()
    with pytest.raises(TypeError, match="flux_images"):
        telemetry.IMAGES.add(pool="a", prompt="a cat")


@pytest.mark.parametrize(
    ("size", "label"),
    [
        ((512, 512), "0.25"),
        ((608, 416), "0.25"),
        ((512, 1024), "0.5"),
        ((1024, 1024), "1"),
        ((1344, 768), "1"),
        ((1440, 1440), "2"),
        ((2048, 2048), "more"),
    ],
)
def test_sizes_of_one_class_have_one_label(size: tuple[int, int], label: str) -> None:
    assert size_label(size[0] * size[1]) == label


def test_batches_have_a_bounded_number_of_labels() -> None:
    labels = [batch_label(images) for images in (1, 2, 3, 4, 5, 8, 9, 100)]
    assert labels == ["1", "2", "3-4", "3-4", "5-8", "5-8", "more", "more"]
