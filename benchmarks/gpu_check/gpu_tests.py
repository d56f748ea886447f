"""Runs the tests in `tests/gpu` with pytest."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu_check.step_benchmark import Row

ROOT = Path(__file__).parents[2]
_CONFIGURATION = "[pytest]\naddopts = -ra --strict-markers --import-mode=importlib -p no:logging\n"
"""That of pyproject.toml needs plugins that `scripts/gpu-check` does not require."""


def run_gpu_tests(_: str) -> Iterator[Row]:
    """One row with the numbers of tests by outcome, and the names of those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        configuration, results = Path(folder) / "pytest.ini", Path(folder) / "results.xml"
        configuration.write_text(_CONFIGURATION)
        command = [sys.executable, "-m", "pytest", "-q", "-c", str(configuration), f"--rootdir={ROOT}"]
        command += ["-p", "no:cacheprovider", f"--junitxml={results}", "tests/gpu"]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        process = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
        yield {"topic": "tests", "exit_status": process.returncode} | _summary(results)


def _summary(results: Path) -> Row:
    """pytest's counts from its JUnit file; empty if it wrote none."""
    if not results.is_file():
        return {}
    (suite,) = ElementTree.parse(results).getroot().iter("testsuite")
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    return {
        "passed": counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"],
        "failed": counts["failures"] + counts["errors"],
        "skipped": counts["skipped"],
        "failed_tests": failed,
    }
