"""The JavaScript clients, installed from npm as `tests/clients/js` pins them, and run through node."""

import asyncio
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "clients" / "js"
INSTALL_TIMEOUT_S = 90
CASE_TIMEOUT_S = 120


class JsClientUnavailable(Exception):
    """There is no node, or its package cannot be installed here. The message gives the reason."""


@dataclass(frozen=True)
class JsClient:
    folder: Path

    async def run(self, case: str, url: str, image: str | Path = "", script: str = "cases.js") -> Any:
        """The result of a case of `script` against the service at `url`. `image` is a file, or a URL."""
        process = await asyncio.create_subprocess_exec(
            "node", script, url, case, str(image), cwd=self.folder, stdout=-1, stderr=-1
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
