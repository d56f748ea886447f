"""The service as a child process: started, waited for, stopped. Knows its command line and its health check only."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import httpx

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-P", "-m", "serve")


class ServiceFailed(Exception):
    """The service did not become ready; the message is for the person who started it."""


def free_port() -> int:
    """A port of the loopback that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Service:
    """`python -m serve` on a port of the loopback, in a process group of its own. Use it as a context manager.

    What it prints goes to our standard error until it is ready, and nowhere after that.
    """

    def __init__(self, port: int, command: Sequence[str] = COMMAND) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        self._quiet = threading.Event()
        threading.Thread(target=self._forward, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until_ready(self, client: httpx.Client, within_s: float = 900) -> None:
        """Returns when the health check says so. Raises `ServiceFailed` if it ends, fails or takes too long."""
        until = time.monotonic() + within_s
        while (status := self._status(client)) not in ("READY", "BUSY"):
            if self._process.poll() is not None:
                raise ServiceFailed(f"the service ended with code {self._process.returncode} before it was ready")
            if status in ("SETUP_FAILED", "DEFUNCT"):
                raise ServiceFailed(f"the service could not start: {status}")
            if time.monotonic() > until:
                raise ServiceFailed(f"the service was not ready within {within_s:g} s")
            time.sleep(0.1)
        self._quiet.set()

    def stop(self, grace_s: float = 60) -> None:
        """Asks it to end, waits, and leaves nothing of its process group behind."""
        try:
            # Only the process itself is asked: it knows in which order its own children must go.
            for asked in (signal.SIGINT, signal.SIGTERM):
                if self._process.poll() is None:
                    self._process.send_signal(asked)
                    with suppress(subprocess.TimeoutExpired):
                        self._process.wait(grace_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _status(self, client: httpx.Client) -> str | None:
        try:
            answer = client.get(f"{self.url}/health-check")
            return str(answer.json()["status"]) if answer.is_success else None
        except (httpx.TransportError, ValueError, KeyError, TypeError):
            return None

    def _forward(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not self._quiet.is_set():
                print(line, end="", file=sys.stderr, flush=True)
