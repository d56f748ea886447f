"""Version 2 of Replicate's Python client, installed from PyPI as `tests/clients/python2` pins it.

It has the import name of version 1, which other tests use, so it runs in processes of its own.
"""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "clients" / "python2"
INSTALL_TIMEOUT_S = 90
CASE_TIMEOUT_S = 120


class Python2ClientUnavailable(Exception):
    """The package cannot be installed here. The message gives the reason."""


@dataclass(frozen=True)
class Python2Client:
    folder: Path

    async def run(self, case: str, url: str, image: str | Path = "") -> Any:
        """The result of a case of `cases.py` against the service at `url`. `image` is a file."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(SOURCE / "cases.py"),
            url,
            case,
            str(image),
            env={**os.environ, "PYTHONPATH": str(self.folder)},
            stdout=-1,
            stderr=-1,
        )
        try:
            async with asyncio.timeout(CASE_TIMEOUT_S):
                output, errors = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        assert process.returncode == 0, errors.decode()
        return json.loads(output)


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
