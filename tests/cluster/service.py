"""A real service as its users start it: `python -m serve` as a child process on loopback, with a HOME of its own."""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 60
RAY_WORKER_PORTS = range(10002, 20000)


def free_port() -> int:
    """A free port outside those that Ray gives to its workers."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in RAY_WORKER_PORTS:
            return port


def environment(home: Path) -> dict[str, str]:
    """The child's environment: nothing of the caller's that Ray or our settings read."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "FLUX_SERVE_", "HF_"))}
    return kept | {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }


@dataclass
class Service:
    """A running service: `url` for HTTP, `ray_address` for processes that join its cluster."""

    url: str
    ray_address: str
    child: subprocess.Popen[str]

    def predict(self, wait_s: int = 60, timeout_s: float = 120, **inputs: Any) -> dict[str, Any]:
        """The prediction for `inputs`, waited for to its end."""
        with httpx.Client(base_url=self.url, timeout=timeout_s) as client:
            answer = client.post("/v1/predictions", json={"input": inputs}, headers={"Prefer": f"wait={wait_s}"})
            answer.raise_for_status()
            prediction: dict[str, Any] = answer.json()
            deadline = time.monotonic() + timeout_s
            while prediction["status"] in ("starting", "processing") and time.monotonic() < deadline:
                time.sleep(0.2)
                prediction = client.get(f"/v1/predictions/{prediction['id']}").json()
            return prediction


def start(home: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Service:
    """Starts a service and returns once it says that it is ready. Raises RuntimeError with what it printed instead."""
    command = [sys.executable, "-m", "serve", *arguments]
    if "--port" not in arguments:
        command += ["--port", str(free_port())]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(home) | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    printed: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(child, printed), daemon=True).start()
    said = []
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        line = printed.get(timeout=max(0.1, deadline - time.monotonic()))
        if line is None:
            break
        said.append(line)
        if line.startswith("ready: "):
            words = line.split()
            return Service(url=words[1], ray_address=words[4].rstrip(";"), child=child)
    stop(child)
    raise RuntimeError("the service did not start:\n" + "".join(said))


def stop(child: subprocess.Popen[str]) -> int:
    """Asks the service to stop as Ctrl-C does, and waits for it; only its own process group is ever signalled."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return child.returncode


def _read(child: subprocess.Popen[str], printed: "queue.Queue[str | None]") -> None:
    assert child.stdout is not None
    for line in child.stdout:
        printed.put(line)
    printed.put(None)
