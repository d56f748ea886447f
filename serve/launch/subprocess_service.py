"""Starts the service as a child process, for the demo, benchmarks and tests."""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
READY = "ready: "
STOP_TIMEOUT_S = 60.0

_RAY_WORKER_PORTS = range(10002, 20000)


class ServiceStartError(Exception):
    """The message is what the service printed instead of becoming ready."""


@dataclass(frozen=True)
class LocalService:
    """A running service: `url` for HTTP, `ray_address` for processes that join its cluster."""

    url: str
    ray_address: str
    process_id: int


def free_port() -> int:
    """A free port on loopback, outside those that Ray gives to its workers."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _RAY_WORKER_PORTS:
            return port


@contextmanager
def local_service(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], object] = lambda line: None,
    start_timeout_s: float = 300,
) -> Iterator[LocalService]:
    """A service for as long as the block lasts, on a free port unless `arguments` name one.

    `on_line` is told each line that the service prints while it starts. Raises `ServiceDidNotStart`.
    """
    port = () if "--port" in arguments else ("--port", str(free_port()))
    child = subprocess.Popen(
        [sys.executable, "-m", "serve", *arguments, *port],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A group of its own: Ctrl-C in a terminal reaches us first, and what is ended is only what was started here.
        start_new_session=True,
    )
    printed: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(child, printed), daemon=True)
    reader.start()
    try:
        ready = _wait_until_ready(printed, on_line, start_timeout_s)
        yield LocalService(url=ready[1], ray_address=ready[4].rstrip(";"), process_id=child.pid)
    finally:
        _stop(child)
        reader.join(STOP_TIMEOUT_S)


def _wait_until_ready(
    printed: "queue.SimpleQueue[str | None]", on_line: Callable[[str], object], timeout_s: float
) -> list[str]:
    """The words of the line that says where the service is."""
    said: list[str] = []
    deadline = time.monotonic() + timeout_s
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            line = printed.get(timeout=left_s)
        except queue.Empty:
            break
        if line is None:
            break
        if line.startswith(READY):
            return line.split()
        said.append(line)
        on_line(line.rstrip())
    raise ServiceStartError("".join(said).strip() or f"nothing was heard of it for {timeout_s:g} s")


def _read(child: "subprocess.Popen[str]", printed: "queue.SimpleQueue[str | None]") -> None:
    """Reads to the end, so that a service that prints much never waits for us."""
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            printed.put(line)
    printed.put(None)


def _stop(child: "subprocess.Popen[str]") -> None:
    """Asks as Ctrl-C does, insists when nobody answers, and leaves nothing of the child's group behind."""
    try:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                child.wait(STOP_TIMEOUT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
