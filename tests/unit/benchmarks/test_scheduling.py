"""The simulation of orders of work: its arithmetic, and the gains of deadlines over the other orders."""

import json
import statistics
from functools import cache
from pathlib import Path

import pytest

from benchmarks.performance.page import render
from benchmarks.performance.results import RESULTS
from benchmarks.scheduling.__main__ import BASELINE, main
from benchmarks.scheduling.simulation import PolicyName, Simulation
from benchmarks.scheduling.workloads import DEVICES, WORKLOADS, Arrival, SimulatedDevice, make_workload
from tests.markdown import section, tables

SIDE = 256
DEVICE = SimulatedDevice({SIDE: 1.0, 512: 3.0}, {SIDE: {1: 1, 8: 4.5}, 512: {1: 1, 8: 8}}, {SIDE: 2.0, 512: 2.0})
REQUESTS, SEEDS = 40, 3


@pytest.mark.parametrize(
    ("policy", "latencies_s"),
    [
        pytest.param("first_come", [6.0, 10.0, 16.0], id="one after the other"),
        # Two steps of both in one pass of 1.5 s; a decode before each further pass.
        pytest.param("always_batch", [5.0, 9.0], id="in batches"),
    ],
)
def test_simulated_time_adds_passes_and_decodes(policy: PolicyName, latencies_s: list[float]) -> None:
    steps = [4, 2, 4] if policy == "first_come" else [2, 4]
    workload = [Arrival(SIDE, each, 1, 0.0) for each in steps]
    simulation = Simulation(policy, DEVICE, workload).run()
    assert simulation.latencies_s == pytest.approx(latencies_s)
    assert simulation.now_s == pytest.approx(latencies_s[-1])


def test_closed_loop_has_one_request_for_each_client() -> None:
    simulation = Simulation("first_come", DEVICE, [Arrival(SIDE, 2, 1) for _ in range(4)], in_flight=2).run()
    assert simulation.latencies_s == [4, 8, 8, 8]


def test_batches_form_only_where_the_device_gains_from_them() -> None:
    arrivals = {side: [Arrival(side, 8, 1, 0.0) for _ in range(8)] for side in (SIDE, 512)}
    ratios = {
        side: Simulation("deadline", DEVICE, workload).run().now_s
        / Simulation("first_come", DEVICE, workload).run().now_s
        for side, workload in arrivals.items()
    }
    assert ratios[SIDE] < 0.7
    assert ratios[512] == pytest.approx(1, rel=0.05)


@cache
def _ratios(device: str, workload: str, policy: PolicyName) -> dict[str, float]:
    """Mean, p95, slowest and throughput, in shares of first come, first served."""
    kind = WORKLOADS[workload]

    def figures(each: PolicyName) -> list[float]:
        rows = []
        for seed in range(SEEDS):
            arrivals = make_workload(kind, DEVICES[device], REQUESTS, seed)
            simulation = Simulation(each, DEVICES[device], arrivals, kind.in_flight).run()
            latencies_s = simulation.latencies_s
            p95_s = latencies_s[-1 - len(latencies_s) // 20]
            rows.append([statistics.mean(latencies_s), p95_s, latencies_s[-1], 1 / simulation.now_s])
        return [statistics.mean(column) for column in zip(*rows, strict=True)]

    names = ("mean", "p95", "slowest", "throughput")
    ratios = (ours / base for ours, base in zip(figures(policy), figures(BASELINE), strict=True))
    return dict(zip(names, ratios, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("workload", ["burst", "open, load 0.6", "open, load 0.9"])
def test_deadlines_shorten_mean_and_p95_of_independent_arrivals(device: str, workload: str) -> None:
    ratios = _ratios(device, workload, "deadline")
    assert ratios["mean"] <= 0.7
    assert ratios["p95"] <= 1
    assert ratios["slowest"] <= 1.5
    assert ratios["throughput"] >= 0.99


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("workload", ["closed, 8 in flight", "closed, 16 in flight"])
def test_deadlines_cost_little_in_closed_loops(device: str, workload: str) -> None:
    """There, the mean follows from the throughput by Little's law, and the smallest p95 is that of equal latencies."""
    ratios = _ratios(device, workload, "deadline")
    assert ratios["mean"] <= 1
    assert ratios["p95"] <= 1.2
    assert ratios["slowest"] <= 1.8
    assert ratios["throughput"] >= 0.99


@pytest.mark.parametrize("policy", ["turns", "always_batch"])
def test_other_orders_are_worse_than_deadlines(policy: PolicyName) -> None:
    for workload in ("open, load 0.6", "closed, 8 in flight"):
        assert _ratios("gpu", workload, "deadline")["mean"] <= _ratios("gpu", workload, policy)["mean"]


def test_saved_result_is_a_table_of_the_performance_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page needs the transcribed first run too."""
    (first_run,) = RESULTS.glob("2026-11-26-*.jsonl")
    (tmp_path / first_run.name).write_text(first_run.read_text())
    assert "## Scheduling" not in render(tmp_path)
    monkeypatch.setattr("benchmarks.scheduling.__main__.RESULT_FILE", tmp_path / "scheduling.json")
    main(["--requests", "4", "--seeds", "1", "--save"])
    (table,) = tables(section(render(tmp_path), "Scheduling"))
    _, *rows = table
    assert len(rows) == len(DEVICES) * len(WORKLOADS)
    assert all(len(row) == 4 and "-" not in row for row in rows)


def test_report_has_a_row_for_each_device_workload_and_policy(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--requests", "4", "--seeds", "1"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len({(row["device"], row["workload"], row["policy"]) for row in rows}) == len(rows) == 2 * 5 * 4
    for row in rows:
        if row["policy"] == BASELINE:
            assert {row[name] for name in ("mean", "p95", "slowest", "throughput")} == {1.0}
