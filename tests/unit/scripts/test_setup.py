"""`scripts/setup` with a fake Python that installs nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[3] / "scripts" / "setup"
TOOLS = ("awk", "bash", "cat", "cmp", "cp", "df", "dirname", "flock", "grep", "mkdir", "rm", "tail", "tee", "touch")

FAKE_PYTHON = """#!/bin/bash
case "$*" in
    -c*) echo "${FAKE_VERSION:-3.11}" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip "*)
        echo "$*" >>"$FAKE_CALLS"
        echo "$FAKE_PIP_OUTPUT"
        [ -z "$FAKE_PIP_INTERRUPTS" ] || kill -9 "$PPID"
        exit "${FAKE_PIP_EXIT:-0}" ;;
esac
"""


class Checkout:
    """A folder with the script, lock files of one line, and a PATH on which the fake Python is the only Python."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.venv = self.root / ".venv"
        (self.root / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(SETUP, self.root / "scripts" / "setup")
        (self.root / "requirements.lock").write_text("torch==2.13.0\n")
        (self.root / "requirements-dev.lock").write_text("pytest==9.2.0\n")
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.add_command("python3", FAKE_PYTHON)

    def add_command(self, name: str, text: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def setup(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.root / "scripts" / "setup"), *arguments],
            env={"PATH": str(self.bin), "FAKE_CALLS": str(self.calls), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def installs(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_first_run_installs_the_lock_and_second_does_nothing(checkout: Checkout) -> None:
    first, second = checkout.setup(), checkout.setup()
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(checkout.installs) == 1
    assert f"-r{checkout.root}/requirements.lock" in checkout.installs[0]
    assert (second.stdout, second.stderr) == ("", "")


def test_progress_is_printed_to_stderr_for_each_package(checkout: Checkout) -> None:
    run = checkout.setup(
        FAKE_PIP_OUTPUT="Collecting torch==2.13.0\n  Downloading torch\nInstalling collected packages: t"
    )
    assert run.stdout == ""
    assert [line for line in run.stderr.splitlines() if "torch" in line] == ["setup: package 1: torch==2.13.0"]


def test_dev_adds_the_dev_lock(checkout: Checkout) -> None:
    checkout.setup()
    checkout.setup("dev")
    checkout.setup("dev")
    checkout.setup()
    assert ["requirements-dev.lock" in call for call in checkout.installs] == [False, True]


def test_changed_lock_is_installed(checkout: Checkout) -> None:
    checkout.setup()
    (checkout.root / "requirements.lock").write_text("torch==2.13.1\n")
    checkout.setup()
    assert len(checkout.installs) == 2


def test_interrupted_install_starts_over(checkout: Checkout) -> None:
    assert checkout.setup(FAKE_PIP_INTERRUPTS="1").returncode != 0
    (checkout.venv / "half-written").touch()
    assert checkout.setup().returncode == 0
    assert len(checkout.installs) == 2
    assert not (checkout.venv / "half-written").exists()


def test_venv_without_its_python_is_recreated(checkout: Checkout) -> None:
    checkout.setup()
    (checkout.venv / "bin" / "python").unlink()
    assert checkout.setup().returncode == 0
    assert len(checkout.installs) == 2


def test_venv_is_recreated_for_another_python(checkout: Checkout) -> None:
    checkout.setup()
    checkout.add_command("other", FAKE_PYTHON.replace("${FAKE_VERSION:-3.11}", "3.12"))
    assert checkout.setup(PYTHON="other").returncode == 0
    assert checkout.setup(PYTHON="other").returncode == 0
    assert len(checkout.installs) == 2


FAILURES = [
    ({"FAKE_VERSION": "3.10"}, "3.11 or 3.12"),
    ({"PYTHON": "python3", "FAKE_VERSION": "3.13"}, "PYTHON=python3 is Python 3.13"),
    ({"PYTHON": "no-such-python"}, "PYTHON=no-such-python does not run"),
    (
        {"FAKE_PIP_EXIT": "1", "FAKE_PIP_OUTPUT": "WARNING: Retrying after NewConnectionError\nERROR: No matching"},
        "package index",
    ),
    ({"FAKE_PIP_EXIT": "1", "FAKE_PIP_OUTPUT": "ERROR: [Errno 28] No space left on device"}, "disk space"),
    (
        {"FAKE_PIP_EXIT": "1", "FAKE_PIP_OUTPUT": "ERROR: first\nERROR: No matching distribution found for torch"},
        "ERROR: No matching distribution found for torch",
    ),
]


@pytest.mark.parametrize(("environment", "message"), FAILURES)
def test_failure_prints_one_line(checkout: Checkout, environment: dict[str, str], message: str) -> None:
    run = checkout.setup(**environment)
    assert run.returncode == 1
    lines = [line for line in run.stderr.splitlines() if "creating .venv" not in line]
    assert len(lines) == 1
    assert message in lines[0]


def test_full_disk_is_reported_before_the_venv_is_created(checkout: Checkout) -> None:
    checkout.add_command("df", "#!/bin/bash\necho Filesystem\necho /dev/sda 1000000 900000 102400 90% /\n")
    run = checkout.setup()
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert "3 GiB" in line
    assert "100 MiB" in line
    assert str(checkout.root) in line
    assert not checkout.venv.exists()


def test_failed_install_is_retried_by_the_next_run(checkout: Checkout) -> None:
    checkout.setup(FAKE_PIP_EXIT="1")
    assert checkout.setup().returncode == 0
    assert len(checkout.installs) == 2


def test_concurrent_runs_install_once(checkout: Checkout) -> None:
    if not (checkout.bin / "flock").exists():
        pytest.skip("this system has no flock")
    environment = {"PATH": str(checkout.bin), "FAKE_CALLS": str(checkout.calls)}
    command = [str(checkout.root / "scripts" / "setup")]
    runs = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert len(checkout.installs) == 1


def test_setup_is_executable() -> None:
    assert os.access(SETUP, os.X_OK)
