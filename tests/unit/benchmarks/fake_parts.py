"""Functions that tests of the GPU benchmark's runner use as parts."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]


def measure(scale: str, name: str = "") -> Iterator[Row]:
    """Prints to stdout as well, as libraries do."""
    print("not JSON")
    yield {"topic": "limit", "ms": 1.0, "scale": scale, "name": name, "process": os.getpid()}


def report_environment(_: str, variable: str) -> Iterator[Row]:
    yield {"topic": "limit", "ms": 1.0, "value": os.environ.get(variable)}


def hang(_: str, pid_file: str) -> Iterator[Row]:
    """Hangs after one row, with a child process whose id is in `pid_file`."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(pid_file, "w", encoding="utf-8") as file:
        file.write(str(child.pid))
    yield {"topic": "limit", "ms": 1.0}
    time.sleep(600)


def crash(_: str) -> Iterator[Row]:
    yield {"topic": "limit", "ms": 1.0}
    os._exit(3)


def fail(_: str) -> Iterator[Row]:
    yield {"topic": "limit", "ms": 1.0}
    raise ValueError("first line\nsecond line")


def leave_out_figures(_: str) -> Iterator[Row]:
    yield {"topic": "step", "step_ms": float("nan"), "peak_gb": 1.0}


def yield_nothing(_: str) -> Iterator[Row]:
    yield from ()
