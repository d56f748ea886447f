"""The runner of the GPU benchmark: processes, time limits and the budget, with parts that measure nothing."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check.parts import Part
from benchmarks.gpu_check.runner import Plan, Runner

GENEROUS_S = 60.0


def fake_part(function: str, *arguments: str, estimate_s: float = 1.0, limit_s: float = GENEROUS_S) -> Part:
    return Part(function, f"tests.unit.benchmarks.fake_parts.{function}", arguments, estimate_s, limit_s)


def run(parts: Sequence[Part], budget_s: float = 10 * GENEROUS_S, **fields: Any) -> list[dict[str, Any]]:
    clock = fields.pop("clock", None)
    plan = Plan(parts, "smoke", budget_s, **fields)
    return list((Runner(plan, os.environ, clock) if clock else Runner(plan, os.environ)).run())


def results(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["result"] for row in rows if "result" in row]


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_rows_come_with_their_part_and_its_result_last() -> None:
    row, end = run([fake_part("measure", "a name")])
    assert row["part"] == end["part"] == "measure"
    assert (row["scale"], row["name"]) == ("smoke", "a name")
    assert (end["result"], end["rows"]) == ("done", 1)
    assert end["elapsed_s"] >= 0


def test_each_part_has_a_process_of_its_own() -> None:
    rows = run([fake_part("measure"), fake_part("measure")])
    assert len({row["process"] for row in rows if "process" in row}) == 2


def test_reused_worker_runs_all_parts_in_one_process() -> None:
    rows = run([fake_part("measure"), fake_part("fail"), fake_part("measure"), fake_part("measure")], reuse_worker=True)
    assert results(rows) == ["done", "failed", "done", "done"]
    processes = [row["process"] for row in rows if "process" in row]
    assert processes[0] != processes[1] == processes[2]


@pytest.mark.parametrize("reuse_worker", [False, True])
def test_hanging_part_is_killed_with_its_children_and_the_next_part_runs(tmp_path: Path, reuse_worker: bool) -> None:
    pid_file = tmp_path / "pid"
    rows = run([fake_part("hang", str(pid_file), limit_s=5.0), fake_part("measure")], reuse_worker=reuse_worker)
    assert results(rows) == ["timed out", "done"]
    assert rows[0]["ms"] == 1.0
    assert not is_running(int(pid_file.read_text()))


def test_limit_factor_multiplies_the_time_limits(tmp_path: Path) -> None:
    rows = run([fake_part("hang", str(tmp_path / "pid"), limit_s=5000.0)], limit_factor=0.001)
    assert results(rows) == ["timed out"]


@pytest.mark.parametrize(
    ("function", "word"), [("crash", "status 3"), ("fail", "ValueError: first line"), ("no_such_function", "Attribute")]
)
def test_failing_part_does_not_stop_the_next(function: str, word: str) -> None:
    rows = run([fake_part(function), fake_part("measure")])
    assert results(rows) == ["failed", "done"]
    error = next(row["error"] for row in rows if row.get("result") == "failed")
    assert word in error
    assert "\n" not in error


def test_workers_that_cannot_start_end_the_run_at_once() -> None:
    rows = run([fake_part("measure")] * 3, modules=["no_such_module"])
    assert results(rows) == ["failed", "skipped", "skipped"]
    assert "status 1" in rows[0]["error"]


def test_part_without_its_figures_is_incomplete() -> None:
    rows = run([fake_part("leave_out_figures"), fake_part("yield_nothing")])
    assert results(rows) == ["incomplete", "incomplete"]
    assert rows[1]["missing"] == ["step_ms"]


def test_parts_that_do_not_fit_the_budget_are_skipped_and_the_time_of_the_last_is_reserved() -> None:
    parts = [
        fake_part("measure", "too long", estimate_s=45),
        fake_part("measure", "fits", estimate_s=30),
        fake_part("measure", "last", estimate_s=20),
    ]
    rows = run(parts, budget_s=60, clock=lambda: 0.0)
    assert results(rows) == ["skipped", "done", "done"]
    assert [row["name"] for row in rows if "name" in row] == ["fits", "last"]
    assert rows[0]["left_s"] == 60


def test_nothing_starts_after_the_budget_is_spent() -> None:
    times_s = iter([0.0, *[100.0] * 100])
    rows = run(
        [fake_part("measure"), fake_part("measure")], budget_s=60, clock=lambda: next(times_s), estimate_factor=0
    )
    assert results(rows) == ["skipped", "skipped"]
