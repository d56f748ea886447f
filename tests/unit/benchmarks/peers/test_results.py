"""Measures, ratios and the table of the comparison."""

from typing import Any

from benchmarks.peers.client import Turn
from benchmarks.peers.results import MEASURES, markdown_table, ratios, scenario_measures


def test_measures_pool_the_latencies_and_add_the_seconds_of_all_rounds() -> None:
    turns = {"mixed": [Turn(10, (1.0, 4.0)), Turn(20, (2.0, 3.0))]}
    assert scenario_measures(turns) == {
        "mixed_total_s": 30,
        "mixed_mean_s": 2.5,
        "mixed_p50_s": 2,
        "mixed_p95_s": 4,
    }


def test_scenario_without_a_success_has_no_measures() -> None:
    assert scenario_measures({"alone": [Turn(3, (), errors=("ReadTimeout",))]}) == {}


def test_ratio_is_ours_divided_by_the_peers() -> None:
    ours = {"alone_p50_s": 1.0, "mixed_p95_s": 3.0, "idle_cores": 0.2, "start_s": 20.0}
    peer = {"alone_p50_s": 2.0, "mixed_p95_s": 2.0, "idle_cores": 0.1, "burst_p95_s": 1.0}
    assert ratios(ours, peer) == {"alone_p50_s": 0.5, "mixed_p95_s": 1.5}


def test_ratio_to_zero_is_left_out() -> None:
    assert ratios({"alone_p50_s": 1.0}, {"alone_p50_s": 0.0}) == {}


def test_table_has_a_column_for_each_server_and_a_row_for_each_measure_of_any() -> None:
    result: dict[str, Any] = {
        "servers": {
            "ours": {"description": "batches", "measures": {"alone_p50_s": 1.0, "start_s": 20.0}, "ratios": {}},
            "peer": {"description": "one lock", "measures": {"alone_p50_s": 0.8}, "ratios": {"alone_p50_s": 1.25}},
        }
    }
    heading, rule, alone, start = (line.strip("| ").split(" | ") for line in markdown_table(result).splitlines())
    assert [name.split()[0] for name in heading] == ["ours", "peer"]
    assert len(rule) == 3
    assert alone == [MEASURES["alone_p50_s"].title, "1.000", "0.800 (1.25)"]
    assert start == [MEASURES["start_s"].title, "20.0", "-"]
