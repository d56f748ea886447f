"""The scripts as files: what a shell must find in each before it runs one."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = [path for path in (*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run") if path.is_file() and not path.suffix]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_can_be_run_and_stops_at_its_first_fault(script: Path) -> None:
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert re.fullmatch(r"# [A-Z].*", lines[1]), "the second line says what it does"
    assert "set -euo pipefail" in lines
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_ci_runs_the_checks_and_then_the_tests_and_nothing_else() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("scripts/")]
    assert commands == ["scripts/check", "scripts/test"]


@pytest.mark.parametrize("name", ["", "report", "../scripts/demo", "load service"])
def test_a_benchmark_that_does_not_exist_is_refused_with_the_names_of_those_that_do(name: str) -> None:
    run = subprocess.run([ROOT / "scripts" / "bench", name], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stdout == ""
    assert re.fullmatch(r"bench: name one of: .*\bload\b.*\n", run.stderr)
