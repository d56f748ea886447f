"""The engine benchmark: its rows and its arguments."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.engine import main


def test_each_row_reports_consistent_step_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    main(["--device", "cpu", "--sizes", "64x48", "--batches", "1", "2", "--steps", "2"])
    output = capsys.readouterr()
    assert "[4/4] precision fp8, size 64x48, batch 2" in output.err
    (line,) = output.out.splitlines()
    result = json.loads(line)
    assert result["arguments"]["geometry"] == "embedded"
    assert result["where"]["versions"]["torch"] == version("torch")
    rows = {(row["precision"], row["size"], row["batch"]): row for row in result["rows"]}
    assert len(rows) == 4
    ratio = rows["bf16", "64x48", 1]["weights_gb"] / rows["fp8", "64x48", 1]["weights_gb"]
    assert ratio > 1.8 if result["rows"][0]["compute_dtype"] == "bfloat16" else ratio == 1
    for row in rows.values():
        assert row["step_ms"] == pytest.approx(row["batch"] * row["step_ms_per_image"], rel=0.01, abs=0.02)
        assert 0 < row["step_ms"] <= row["slowest_step_ms"]
        assert row["tflops_per_s"] > 0


@pytest.mark.parametrize("arguments", [["--batches", "0"], ["--sizes", "64"], ["--precisions", "fp4"]])
def test_invalid_arguments_are_rejected(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert arguments[0] in capsys.readouterr().err
