"""Process trees of servers."""

import os
import sys
import time

import psutil
import pytest

from benchmarks.peers.process import ServerProcess, StartError

CHILD = "import time; time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {CHILD!r}])"
TIMEOUT_S = 20


def start(code: str) -> ServerProcess:
    return ServerProcess((sys.executable, "-S", "-c", code), os.environ)


def children(process: ServerProcess) -> list[psutil.Process]:
    process.sample_memory()
    return process.tree[1:]


def test_server_that_ends_before_it_is_ready_is_an_error_with_its_output() -> None:
    process = start("raise SystemExit('no such model')")
    with pytest.raises(StartError, match="no such model"):
        process.wait_until_ready(lambda: False, TIMEOUT_S)
    process.stop()


def test_time_until_ready_is_limited() -> None:
    process = start(CHILD)
    with pytest.raises(StartError):
        process.wait_until_ready(lambda: False, timeout_s=0.01)
    process.stop()


def test_pausing_and_stopping_affect_child_processes() -> None:
    process = start(PARENT)
    process.wait_until_ready(lambda: bool(children(process)), TIMEOUT_S)
    assert process.peak_mb > 0
    (child,) = children(process)
    process.pause()
    wait_for_status(child, psutil.STATUS_STOPPED)
    process.resume()
    wait_for_status(child, psutil.STATUS_SLEEPING)
    process.stop()
    assert not child.is_running()


def wait_for_status(process: psutil.Process, status: str) -> None:
    """A signal takes effect some time after it was sent."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while process.status() != status:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
