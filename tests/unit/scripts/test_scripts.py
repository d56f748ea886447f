"""The shell scripts are executable, parse, and stop at the first error."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = [path for path in (*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run") if path.is_file() and not path.suffix]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_executable_and_stops_at_the_first_error(script: Path) -> None:
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_ci_runs_only_the_checks_the_gpu_benchmark_on_the_cpu_and_the_tests() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("scripts/")]
    assert commands == ["scripts/check", "scripts/gpu-check --smoke >/dev/null", "scripts/test"]


def test_gpu_check_runs_with_the_python_of_the_environment(tmp_path: Path) -> None:
    python = tmp_path / "a python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$PYTHONPATH" "$@"\n')
    python.chmod(0o755)
    command = [str(ROOT / "scripts" / "gpu-check"), "--only", "a part"]
    environment = {**os.environ, "PYTHON": str(python), "PYTHONPATH": "/other"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [f"{ROOT}:/other", "-P", "-m", "benchmarks.gpu_check", "--only", "a part"]


def test_gpu_check_has_the_python_of_the_checkout_by_default(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(ROOT / "scripts" / "gpu-check", tmp_path / "scripts")
    (tmp_path / "scripts" / "setup").write_text('#!/bin/bash\necho "setup $1" >&2\n')
    (tmp_path / "scripts" / "setup").chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/bin/echo")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    run = subprocess.run([script, "--smoke"], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["-P", "-m", "benchmarks.gpu_check", "--smoke"]
    assert run.stderr.split() == ["setup", "dev"]


@pytest.mark.parametrize("name", ["", "report", "../scripts/demo", "load service"])
def test_unknown_benchmark_is_rejected_with_all_names(name: str) -> None:
    run = subprocess.run([ROOT / "scripts" / "bench", name], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stdout == ""
    assert re.fullmatch(r"bench: .*\bload\b.*\n", run.stderr)
