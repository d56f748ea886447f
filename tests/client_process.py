"""Runs a case of an official client in a process of its own."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CASE_TIMEOUT_S = 120


async def run_case(*command: str, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> Any:
    """The JSON that the command prints; the process is killed if it is not waited for any more."""
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=environment, stdout=-1, stderr=-1)
    try:
        async with asyncio.timeout(CASE_TIMEOUT_S):
            output, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, errors.decode()
    return json.loads(output)
