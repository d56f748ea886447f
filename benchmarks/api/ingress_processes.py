"""Starts processes of the ingress that share a database and a state folder."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx

from benchmarks.peers.process import ServerProcess
from serve.launch.subprocess_service import free_port

START_TIMEOUT_S = 120.0
PUBLIC_URL = "https://images.example.com"
"""With https, responses have URLs of images instead of their contents."""


class IngressProcesses:
    """Running processes."""

    def __init__(self, urls: Sequence[str], processes: Sequence[ServerProcess]) -> None:
        self.urls = urls
        self._processes = processes

    def cpu_s(self) -> float:
        """CPU time of all processes so far."""
        return sum(process.cpu_s() for process in self._processes)


@contextmanager
def ingress_processes(count: int, database_url: str, state_folder: Path) -> Iterator[IngressProcesses]:
    """Runs `count` processes for the duration of the block. Raises `StartError`."""
    settings = {
        "database_url": database_url,
        "state_folder": str(state_folder),
        "outputs": {"public_url": PUBLIC_URL},
    }
    ports = [str(free_port()) for _ in range(count)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    module = (sys.executable, "-m", "benchmarks.api.ingress_process")
    processes = []
    with ExitStack() as stack:
        for port in ports:
            processes.append(ServerProcess((*module, port, json.dumps(settings)), os.environ))
            stack.callback(processes[-1].stop)
        for url, process in zip(urls, processes, strict=True):
            process.wait_until_ready(partial(_is_ready, url), START_TIMEOUT_S)
        yield IngressProcesses(urls, processes)


def _is_ready(url: str) -> bool:
    try:
        # Loading certificates takes longer than the request.
        return httpx.get(f"{url}/readyz", verify=False).is_success
    except httpx.HTTPError:
        return False
