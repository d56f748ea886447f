"""Version 2 of Replicate's Python client, installed from PyPI as `tests/clients/python2` pins it.

It has the import name of version 1, which other tests use, so it runs in processes of its own.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.client_process import run_case

SOURCE = Path(__file__).parent / "clients" / "python2"
INSTALL_TIMEOUT_S = 90


class Python2ClientUnavailable(Exception):
    """The package cannot be installed here. The message gives the reason."""


@dataclass(frozen=True)
class Python2Client:
    folder: Path

    async def run(self, case: str, url: str, image: str | Path = "") -> Any:
        """The result of a case of `cases.py` against the service at `url`. `image` is a file."""
        command = (sys.executable, str(SOURCE / "cases.py"), url, case, str(image))
        return await run_case(*command, environment={**os.environ, "PYTHONPATH": str(self.folder)})


def install(folder: Path) -> Python2Client:
    """Installs the client in `folder`; its other dependencies are those of version 1.

    Raises `Python2ClientUnavailable`.
    """
    requirements = str(SOURCE / "requirements.txt")
    options = ["--quiet", "--no-deps", "--require-hashes", "--disable-pip-version-check", "--retries", "1"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), "-r", requirements]
    try:
        subprocess.run(command, capture_output=True, timeout=INSTALL_TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired:
        raise Python2ClientUnavailable(f"pip install took more than {INSTALL_TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode().strip().splitlines()
        raise Python2ClientUnavailable(f"pip install failed: {reason[-1] if reason else error.returncode}") from None
    return Python2Client(folder)
