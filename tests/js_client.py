"""The JavaScript clients, installed from npm as `tests/clients/js` pins them, and run through node."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.client_process import run_case

SOURCE = Path(__file__).parent / "clients" / "js"
INSTALL_TIMEOUT_S = 90


class JsClientUnavailable(Exception):
    """There is no node, or its package cannot be installed here. The message gives the reason."""


@dataclass(frozen=True)
class JsClient:
    folder: Path

    async def run(self, case: str, url: str, image: str | Path = "", script: str = "cases.js") -> Any:
        """The result of a case of `script` against the service at `url`. `image` is a file, or a URL."""
        return await run_case("node", script, url, case, str(image), folder=self.folder)


def install(folder: Path) -> JsClient:
    """Installs the clients in `folder`. Raises `JsClientUnavailable`."""
    missing = [program for program in ("node", "npm") if shutil.which(program) is None]
    if missing:
        raise JsClientUnavailable(f"{' and '.join(missing)} not found")
    shutil.copytree(SOURCE, folder, dirs_exist_ok=True)
    command = ["npm", "ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
    try:
        subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "CI": "1"},
            capture_output=True,
            timeout=INSTALL_TIMEOUT_S,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise JsClientUnavailable(f"npm ci took more than {INSTALL_TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode().strip().splitlines()
        raise JsClientUnavailable(f"npm ci failed: {reason[0] if reason else error.returncode}") from None
    return JsClient(folder)
