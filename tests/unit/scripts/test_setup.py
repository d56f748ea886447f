"""`scripts/setup` against a Python that installs nothing: what it makes, when it makes it, and how it says no."""

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
        echo "$FAKE_PIP_SAYS"
        [ -z "$FAKE_PIP_INTERRUPTS" ] || kill -9 "$PPID"
        exit "${FAKE_PIP_EXIT:-0}" ;;
esac
"""


class Checkout:
    """A folder with the script, locks of one line each, and a PATH on which the only Python is the fake one."""

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
        self.command("python3", FAKE_PYTHON)

    def command(self, name: str, text: str) -> None:
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


def test_the_first_run_installs_the_lock_and_the_second_does_nothing(checkout: Checkout) -> None:
    first, second = checkout.setup(), checkout.setup()
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(checkout.installs) == 1
    assert f"-r{checkout.root}/requirements.lock" in checkout.installs[0]
    assert (second.stdout, second.stderr) == ("", "")


def test_progress_names_each_package_on_standard_error(checkout: Checkout) -> None:
    run = checkout.setup(
        FAKE_PIP_SAYS="Collecting torch==2.13.0\n  Downloading torch\nInstalling collected packages: t"
    )
    assert run.stdout == ""
    assert [line for line in run.stderr.splitlines() if "torch" in line] == ["setup: package 1: torch==2.13.0"]


def test_what_tests_need_is_installed_on_top_when_asked_for(checkout: Checkout) -> None:
    checkout.setup()
    checkout.setup("dev")
    checkout.setup("dev")
    checkout.setup()
    assert ["requirements-dev.lock" in call for call in checkout.installs] == [False, True]


def test_a_changed_lock_is_installed(checkout: Checkout) -> None:
    checkout.setup()
    (checkout.root / "requirements.lock").write_text("torch==2.13.1\n")
    checkout.setup()
    assert len(checkout.installs) == 2


def test_an_interrupted_install_is_made_again_from_nothing(checkout: Checkout) -> None:
    assert checkout.setup(FAKE_PIP_INTERRUPTS="1").returncode != 0
    (checkout.venv / "half-written").touch()
    assert checkout.setup().returncode == 0
    assert len(checkout.installs) == 2
    assert not (checkout.venv / "half-written").exists()


def test_an_environment_whose_python_is_gone_is_made_again(checkout: Checkout) -> None:
    checkout.setup()
    (checkout.venv / "bin" / "python").unlink()
    assert checkout.setup().returncode == 0
    assert len(checkout.installs) == 2


def test_another_python_makes_another_environment(checkout: Checkout) -> None:
    checkout.setup()
    checkout.command("other", FAKE_PYTHON.replace("${FAKE_VERSION:-3.11}", "3.12"))
    assert checkout.setup(PYTHON="other").returncode == 0
    assert checkout.setup(PYTHON="other").returncode == 0
    assert len(checkout.installs) == 2


REFUSALS = [
    ({"FAKE_VERSION": "3.10"}, "Python 3.11 or 3.12 is needed and none was found"),
    ({"PYTHON": "python3", "FAKE_VERSION": "3.13"}, "PYTHON=python3 is Python 3.13; 3.11 or 3.12 is needed"),
    ({"PYTHON": "no-such-python"}, "PYTHON=no-such-python does not run"),
    (
        {"FAKE_PIP_EXIT": "1", "FAKE_PIP_SAYS": "WARNING: Retrying after NewConnectionError\nERROR: No matching"},
        "the package index cannot be reached",
    ),
    ({"FAKE_PIP_EXIT": "1", "FAKE_PIP_SAYS": "ERROR: [Errno 28] No space left on device"}, "no disk space left"),
    (
        {"FAKE_PIP_EXIT": "1", "FAKE_PIP_SAYS": "ERROR: first\nERROR: No matching distribution found for torch"},
        "installing failed: ERROR: No matching distribution found for torch",
    ),
]


@pytest.mark.parametrize(("environment", "message"), REFUSALS)
def test_what_cannot_be_done_is_one_clear_line(checkout: Checkout, environment: dict[str, str], message: str) -> None:
    run = checkout.setup(**environment)
    assert run.returncode == 1
    lines = [line for line in run.stderr.splitlines() if not line.endswith("a few minutes, once")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_full_disk_is_seen_before_anything_is_made(checkout: Checkout) -> None:
    checkout.command("df", "#!/bin/bash\necho Filesystem\necho /dev/sda 1000000 900000 102400 90% /\n")
    run = checkout.setup()
    assert run.returncode == 1
    assert run.stderr.splitlines() == [f"setup: no disk space: 3 GiB are needed in {checkout.root}, 100 MiB are free"]
    assert not checkout.venv.exists()


def test_a_failed_install_is_tried_again(checkout: Checkout) -> None:
    checkout.setup(FAKE_PIP_EXIT="1")
    assert checkout.setup().returncode == 0
    assert len(checkout.installs) == 2


def test_two_at_once_install_once(checkout: Checkout) -> None:
    if not (checkout.bin / "flock").exists():
        pytest.skip("this system has no flock")
    environment = {"PATH": str(checkout.bin), "FAKE_CALLS": str(checkout.calls)}
    command = [str(checkout.root / "scripts" / "setup")]
    runs = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert len(checkout.installs) == 1


def test_setup_is_executable() -> None:
    assert os.access(SETUP, os.X_OK)
