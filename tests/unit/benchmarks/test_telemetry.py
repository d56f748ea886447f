"""The comparison of the service with and without telemetry."""

import pytest

from benchmarks.telemetry import (
    METRICS,
    OFF,
    TRACES,
    VARIANTS,
    TimedBackend,
    order_of,
    ratios,
    seconds_per_span_off,
)
from serve import telemetry
from tests.metrics import RecordedMetrics


def test_each_variant_is_the_first_one_in_turn() -> None:
    orders = [order_of(number) for number in range(3)]
    assert {order[0] for order in orders} == set(VARIANTS)
    assert all(sorted(order) == sorted(VARIANTS) for order in orders)


def test_ratios_compare_the_variants_of_one_round() -> None:
    found = ratios({OFF: [10.0, 5.0, 8.0], METRICS: [9.0, 5.0, 8.0], TRACES: [5.0, 5.0, 4.0]})
    assert found["ratios"] == {METRICS: [0.9, 1.0, 1.0], TRACES: [0.5, 1.0, 0.5]}
    assert found["ratio"] == {METRICS: 1.0, TRACES: 0.5}


def test_times_of_the_backend_are_summed_up() -> None:
    times, inner = iter((1.0, 3.0, 10.0, 10.5)), RecordedMetrics()
    timed = TimedBackend(inner, lambda: next(times))
    for _ in range(2):
        timed.record(telemetry.IMAGES, 1, {"pool": "schnell"})
    assert timed.seconds == 2.5
    assert inner.value(telemetry.IMAGES, "schnell") == 2


def test_time_of_a_span_is_the_mean_of_the_calls() -> None:
    times = iter((10.0, 14.0))
    assert seconds_per_span_off(8, lambda: next(times)) == pytest.approx(0.5)
