"""Starts the service as a subprocess, for the demo, benchmarks and tests."""

import json
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
STOP_TIMEOUT_S = 100.0
"""Longer than a service waits for running predictions and for its replicas."""

_RAY_WORKER_PORTS = range(10002, 20000)


class ServiceStartError(Exception):
    """The service did not become ready. The message is its output."""


@dataclass(frozen=True)
class LocalService:
    """A running service: `url` for HTTP requests, `ray_address` for processes that connect to its Ray cluster."""

    url: str
    ray_address: str
    process_id: int


def free_port() -> int:
    """A free loopback port that is not in the range of Ray's worker ports."""
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
    """Runs the service for the duration of the block, on a free port unless `arguments` have `--port`.

    `on_line` is called with each line that the service prints before it is ready. Raises `ServiceStartError`.
    """
    port = () if "--port" in arguments else ("--port", str(free_port()))
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", *arguments, *port],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A process group of its own, so that Ctrl-C does not reach it directly and the whole group can be killed.
        start_new_session=True,
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_output, args=(process, lines), daemon=True)
    reader.start()
    try:
        words = _wait_until_ready(lines, on_line, start_timeout_s).split()
        yield LocalService(url=words[1], ray_address=words[4].rstrip(",;"), process_id=process.pid)
    finally:
        _stop(process)
        reader.join(STOP_TIMEOUT_S)


def _wait_until_ready(
    lines: "queue.SimpleQueue[str | None]", on_line: Callable[[str], object], timeout_s: float
) -> str:
    """Returns the line `ready: URL (Ray at ADDRESS; ...)`, or `ready: URL (Ray at ADDRESS, ...)`."""
    output: list[str] = []
    deadline = time.monotonic() + timeout_s
    while (remaining_s := deadline - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=remaining_s)
        except queue.Empty:
            continue
        if line is None:
            break
        message = _message(line)
        if message.startswith(READY):
            return message
        output.append(line)
        on_line(line.rstrip())
    else:
        output.append(f"it was not ready after {timeout_s:g} s\n")
    raise ServiceStartError("".join(output).strip() or "it printed nothing")


def _message(line: str) -> str:
    """The message of a line, which is JSON with the setting `log_format=json`."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, TypeError, KeyError):
        return line


def _read_output(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str | None]") -> None:
    """Puts each line in the queue, then None. Reads to the end, so that the service never blocks on a full pipe."""
    assert process.stdout is not None
    with process.stdout as stdout:
        for line in stdout:
            lines.put(line)
    lines.put(None)


def _stop(process: "subprocess.Popen[str]") -> None:
    """Sends SIGINT, waits up to `STOP_TIMEOUT_S`, then kills what is left of the process group."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
