"""Starts processes of the ingress that share a database and a state folder."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from benchmarks.peers.process import ServerProcess
from serve.launch.subprocess_service import free_port

START_TIMEOUT_S = 60.0
PUBLIC_URL = "https://images.example.com"
"""With https, responses have URLs of the images instead of their contents."""


@contextmanager
def ingress_processes(count: int, database_url: str, state_folder: Path) -> Iterator[Sequence[str]]:
    """The URLs of processes that run for the duration of the block. Raises `StartError`."""
    settings = {
        "database_url": database_url,
        "state_folder": str(state_folder),
        "outputs": {"public_url": PUBLIC_URL},
    }
    with ExitStack() as stack:
        ports = [free_port() for _ in range(count)]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        processes = []
        for port in ports:
            command = (sys.executable, "-m", "benchmarks.api.ingress_process", str(port), json.dumps(settings))
            process = ServerProcess(command, os.environ)
            stack.callback(process.stop)
            processes.append(process)
        for url, process in zip(urls, processes, strict=True):
            process.wait_until_ready(lambda url=url: _is_ready(url), START_TIMEOUT_S)
        yield urls


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.HTTPError:
        return False
