"""docs/performance.md: it is up to date, and its tables show measured figures and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check.steps import SWITCHES
from benchmarks.performance import page
from benchmarks.performance.__main__ import main
from benchmarks.performance.flops import flops_per_step, image_tokens
from benchmarks.performance.markdown import NOT_MEASURED, figure, percent, significant, table
from benchmarks.performance.results import RESULTS, read_runs
from benchmarks.performance.sections import LARGE
from serve.settings import PoolSettings
from tests.markdown import section, tables

FIRST_RUN = "2026-11-26-h100.jsonl"
RUN = {
    "date": "2026-12-01 10:00 UTC",
    "gpu": {"name": "a GPU", "memory": "80 GB", "driver": "580.1"},
    "commit": "abc1234",
    "python": "3.12.1",
    "versions": {"torch": "2.13.0"},
    "command": "gpu-check",
}


def write_run(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    lines = [{"run": RUN}, *rows, {"part": "a part", "result": "done"}]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with the first run only."""
    (tmp_path / FIRST_RUN).write_text((RESULTS / FIRST_RUN).read_text())
    return tmp_path


def rows_of(text: str, title: str) -> list[list[str]]:
    return [row for table in tables(section(text, title)) for row in table]


def test_page_is_up_to_date() -> None:
    assert main(["--check"]) == 0, "run: python -m benchmarks.performance"


def test_check_fails_for_a_page_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.performance.__main__.PAGE", tmp_path / "performance.md")
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0
    (tmp_path / "performance.md").write_text("edited")
    assert main(["--check"]) == 1


def test_figures_of_a_new_run_replace_not_measured(results: Path) -> None:
    labels = {"topic": "step", "model": "dev", "precision": "bf16", "text_tokens": 512, "size": LARGE, "batch": 1}
    before = rows_of(page.render(results), "Targets")
    assert {row[2] for row in before if "dev" in row[0]} == {NOT_MEASURED}
    write_run(results, "2026-12-01-a-gpu.jsonl", [labels | {"step_ms": 115.0}])
    text = page.render(results)
    targets = {row[0]: row for row in rows_of(text, "Targets")}
    assert targets["[dev] bf16, a step"][1:3] == ["184.6 ms", "115 ms"]
    assert targets["[dev] fp8, a step"][1:3] == ["268 ms", NOT_MEASURED]
    assert any("115 (646.8)" in row for row in rows_of(text, "Steps"))
    assert ["abc1234", "3.12.1"] in [row[4:6] for row in rows_of(text, "Runs")]


def test_newest_run_counts_and_rows_with_errors_do_not(results: Path) -> None:
    labels = {"topic": "lora", "precision": "bf16", "size": LARGE, "ranks": [[64]]}
    write_run(results, "2026-12-01-a-gpu.jsonl", [labels | {"extra": 0.5}])
    write_run(results, "2026-12-02-a-gpu.jsonl", [labels | {"extra": 0.04}, labels | {"error": "out of memory"}])
    targets = {row[0]: row for row in rows_of(page.render(results), "Targets")}
    assert targets["[dev] bf16, a LoRA of rank 64, more per step"][2] == "+4 %"


def test_unavailable_kernels_are_left_out(results: Path) -> None:
    row = {"topic": "limit", "what": "product", "layer": "a layer", "kernel": "bf16"}
    attention = {"topic": "limit", "what": "attention", "tokens": 4608, "kernel": "flash4", "unavailable": "why"}
    rows: list[dict[str, Any]] = [
        row | {"unavailable": "why"},
        row | {"ms": 1, "tflops_per_s": 700},
        attention,
    ]
    write_run(results, "2026-12-01-a-gpu.jsonl", rows)
    found = {cells[0]: cells[2] for cells in rows_of(page.render(results), "Limits of the GPU")}
    assert found["bf16, FLUX.1's linear layers"] == "700"
    assert "attention, 4608 tokens, cudnn" in found
    assert "attention, 4608 tokens, flash4" not in found


def test_ablation_compares_with_everything_on(results: Path) -> None:
    labels = {"topic": "ablation", "precision": "bf16", "size": LARGE}
    rows = [
        labels | {"switch": "none", "rank": 0, "step_ms": 110.0, "decode_ms": 90.0},
        labels | {"switch": "none", "rank": 16, "step_ms": 115.0},
        labels | {"switch": "compile", "rank": 0, "step_ms": 180.0},
        labels | {"switch": "lora_product", "rank": 16, "step_ms": 140.0},
        {"topic": "image", "model": "dev", "precision": "bf16", "size": LARGE, "steps": 28, "images": 1}
        | {"seconds": 3.3, "decode_ms": 40.0},
    ]
    write_run(results, "2026-12-01-a-gpu.jsonl", rows)
    found = {row[0]: row[3] for row in rows_of(page.render(results), "Optimisations")}
    assert found["compiled blocks"] == "110 on, 180 off"
    assert found["one LoRA product per batch"] == "115 on, 140 off"
    assert found["compiled VAE"] == "40 on, 90 off"
    assert found["running ahead"] == NOT_MEASURED


def test_every_switch_has_a_line_on_the_page_and_is_a_setting(results: Path) -> None:
    for switch, changes in SWITCHES.items():
        PoolSettings.model_validate({"model": "dev", **changes})
        assert changes.keys() <= PoolSettings.model_fields.keys()
        assert switch == "none" or f"`{switch}: " in section(page.render(results), "Optimisations")


def test_tables_of_other_benchmarks_appear_once_they_exist(results: Path) -> None:
    assert "## Peers" not in page.render(results)
    (results / "peers.json").write_text(json.dumps({"table": "| peer | ratio |\n|---|--:|\n| a | 1.3 |"}))
    assert rows_of(page.render(results), "Peers")[-1] == ["a", "1.3"]


def test_first_run_is_the_transcribed_one() -> None:
    first, now = read_runs(RESULTS)
    assert first.calls[0]["commit"] == "bfd211a"
    assert now is None or not now.transcribed


@pytest.mark.parametrize(("size", "expected"), [("1024x1024", 74_384_653_418_496), ("512x512", 21_502_600_151_040)])
def test_flop_count_is_that_of_the_counted_transformer(size: str, expected: int) -> None:
    """The expected numbers come from `benchmarks.geometry.flops_per_pass`, which takes too long here."""
    assert flops_per_step(image_tokens(size), text=512) == expected


def test_figures_are_formatted() -> None:
    assert [significant(value) for value in (0, 0.0734, 68.61, 135.42, 1408.6)] == [
        "0",
        "0.0734",
        "68.6",
        "135.4",
        "1409",
    ]
    assert figure({"ms": "43 to 48"}, "ms", " ms") == "43 to 48 ms"
    assert figure({}, "ms") == figure(None, "ms") == percent(None, "extra") == NOT_MEASURED
    assert percent({"extra": -0.004}, "extra") == "+0 %"
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --: |\n| 1 | 2 |"
