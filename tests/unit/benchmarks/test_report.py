"""Percentiles and the JSON line of benchmark reports."""

import json

import pytest

from benchmarks.report import describe_machine, percentiles, report


def test_percentiles_are_nearest_rank() -> None:
    assert percentiles([]) == {}
    assert percentiles(float(number) for number in range(1, 101)) == {"p50_s": 50, "p95_s": 95, "p99_s": 99}
    assert percentiles([2.0]) == {"p50_s": 2, "p95_s": 2, "p99_s": 2}


def test_report_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    report("question", {"a": 1}, {"figure": 2})
    line = json.loads(capsys.readouterr().out)
    assert line["figure"] == 2
    assert line["where"]["versions"]["torch"] != "absent"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/folder/benchmarks/peers/__main__.py", "--quick"], "peers --quick"),
        (["/folder/benchmarks/engine.py"], "engine"),
    ],
)
def test_command_has_no_folder(monkeypatch: pytest.MonkeyPatch, arguments: list[str], command: str) -> None:
    monkeypatch.setattr("sys.argv", arguments)
    assert describe_machine()["command"] == command
