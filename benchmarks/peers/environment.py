"""Creates the virtual environment of the peers."""

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

from serve.launch.subprocess_service import ROOT

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FOLDER = ROOT / ".venv-peers"
BIN = FOLDER / "bin"
INSTALL_TIMEOUT_S = 1800


class InstallError(Exception):
    """The peers' requirements cannot be installed. The message is pip's last error."""


def install() -> None:
    """Installs the requirements, unless they are installed already. Takes minutes. Raises `InstallError`."""
    installed = FOLDER / REQUIREMENTS.name
    if installed.exists() and filecmp.cmp(installed, REQUIREMENTS, shallow=False):
        return
    print(f"peers: installing {REQUIREMENTS.name} into {FOLDER.name}; this takes a few minutes", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], check=True)
    pip = [str(BIN / "python"), "-m", "pip", "install", "--no-input", "--quiet", "--disable-pip-version-check"]
    process = subprocess.run(
        [*pip, "-r", str(REQUIREMENTS)], capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
    )
    if process.returncode:
        errors = [line for line in process.stderr.splitlines() if line.startswith("ERROR")]
        raise InstallError(errors[0] if errors else process.stderr[-500:])
    shutil.copy(REQUIREMENTS, installed)


def search_path() -> str:
    """The value of PATH with which servers that start `python` start the peers' one."""
    return f"{BIN}{os.pathsep}{os.environ['PATH']}"
