"""Runs a server as a process tree that can be paused, measured and stopped."""

import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO

import psutil

from serve.launch.subprocess_service import ROOT

STOP_TIMEOUT_S = 30.0
SAMPLE_PERIOD_S = 0.5
MEGABYTE = 1e6
LOG_CHARS = 600


class StartError(Exception):
    """The server did not become ready. The message has the end of its output."""


class ServerProcess:
    """A running server and all its child processes."""

    def __init__(self, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by stop()
        self._start_s = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._root = psutil.Process(self._process.pid)
        self.tree: list[psutil.Process] = [self._root]
        self.peak_mb = 0.0
        """Largest sum of resident memory that `sample_memory` has seen."""

    def wait_until_ready(self, is_ready: Callable[[], bool], timeout_s: float) -> float:
        """Seconds from the start until `is_ready` returned True. Raises `StartError`."""
        while not is_ready():
            if self._process.poll() is not None or time.perf_counter() - self._start_s > timeout_s:
                raise StartError(self._end_of_log())
            time.sleep(0.1)
        return time.perf_counter() - self._start_s

    def pause(self) -> None:
        """Stops all processes with SIGSTOP, so that an idle server takes no time from another one."""
        self._refresh()
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def sample_memory(self) -> float:
        """Resident memory of all processes in MB. Shared pages count once for each process."""
        self._refresh()
        total = 0
        for process in self.tree:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        self.peak_mb = max(self.peak_mb, total / MEGABYTE)
        return total / MEGABYTE

    @contextmanager
    def sampling_memory(self) -> Iterator[None]:
        """Samples the memory from a thread for the duration of the block."""
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(SAMPLE_PERIOD_S):
                self.sample_memory()

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def cpu_s(self) -> float:
        """CPU time of all running processes so far."""
        total = 0.0
        for process in self.tree:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def stop(self) -> None:
        """Sends SIGINT, then kills what is left of the tree after `STOP_TIMEOUT_S`."""
        self.resume()
        self._refresh()
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(self.tree, STOP_TIMEOUT_S)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._log.close()

    def _refresh(self) -> None:
        with suppress(psutil.NoSuchProcess):
            children = self._root.children(recursive=True)
            # A child whose parent has ended is no longer below the root.
            self.tree = list(dict.fromkeys([*self.tree, *children]))
        self.tree = [process for process in self.tree if process.is_running()]

    def _signal(self, number: signal.Signals) -> None:
        for process in self.tree:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _end_of_log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-LOG_CHARS:]
