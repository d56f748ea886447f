"""The comparison of the service with and without telemetry."""

import pytest

from benchmarks.telemetry import METRICS, OFF, TRACES, VARIANTS, order_of, ratios, seconds_per_span_off


def test_each_variant_is_the_first_one_in_turn() -> None:
    orders = [order_of(number) for number in range(3)]
    assert {order[0] for order in orders} == set(VARIANTS)
    assert all(sorted(order) == sorted(VARIANTS) for order in orders)


def test_ratios_compare_the_variants_of_one_round() -> None:
    found = ratios({OFF: [10.0, 5.0, 8.0], METRICS: [9.0, 5.0, 8.0], TRACES: [5.0, 5.0, 4.0]})
    assert found["ratios"] == {METRICS: [0.9, 1.0, 1.0], TRACES: [0.5, 1.0, 0.5]}
    assert found["ratio"] == {METRICS: 1.0, TRACES: 0.5}


def test_time_of_a_span_is_the_mean_of_the_calls() -> None:
    times = iter((10.0, 14.0))
    assert seconds_per_span_off(8, lambda: next(times)) == pytest.approx(0.5)
