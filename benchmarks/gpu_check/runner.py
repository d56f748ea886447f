"""Runs parts in worker processes, each with a time limit, within a budget for all of them."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu_check.parts import Part
from benchmarks.gpu_check.required_figures import missing_figures

Row = dict[str, Any]
Result = Literal["done", "incomplete", "failed", "timed out", "skipped"]
EXIT_TIMEOUT_S = 20
"""Time for a process to end and to free the device, after which it is killed."""
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Plan:
    """What to run, and how."""

    parts: Sequence[Part]
    scale: str
    budget_s: float
    limit_factor: float = 1.0
    """Multiplies the parts' time limits."""
    estimate_factor: float = 1.0
    """Multiplies the parts' estimates; with 0, a part is skipped only if nothing is left of the budget."""
    reuse_worker: bool = False
    """Run the parts one after the other in one process, which saves the imports, until one is killed."""
    modules: Sequence[str] = ()
    """Imported by a worker before its first part."""


class Worker:
    """A process that runs parts, in a process group of its own."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "benchmarks.gpu_check.worker", *modules],
            cwd=_ROOT,
            env={
                **environment,
                "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH")])),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.ready = False
        """It has finished its imports."""
        self._messages: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, part: Part, scale: str) -> None:
        assert self._process.stdin is not None
        message = {"function": part.function, "arguments": [scale, *part.arguments]}
        with suppress(BrokenPipeError):  # The process has ended; `receive` reports that.
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def receive(self, timeout_s: float) -> Row | None:
        """The next message; None if the process has ended. Raises `queue.Empty` after the timeout."""
        return self._messages.get(timeout=max(0.0, timeout_s))

    def close(self) -> None:
        """Lets the process end, so that it frees the device, and kills it and all of its children if it does not."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self.wait()

    def wait(self) -> int:
        """Waits until the process ends, kills what is left of it and of its children, and returns its exit status."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_TIMEOUT_S)
        return self.kill()

    def kill(self) -> int:
        """Kills the process and its children, and returns its exit status."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self._reader.join()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        return status

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            with self._process.stdout as lines:
                for line in lines:
                    self._messages.put(json.loads(line))
        finally:
            self._messages.put(None)


class Runner:
    """Runs a plan. The next worker starts ahead of its part, because its imports take seconds."""

    def __init__(self, plan: Plan, environment: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = plan
        self._environment = environment
        self._clock = clock
        self._start_s = clock()
        self._workers: list[Worker] = []
        """The running ones: that of the current part first, then one that is ready for the next part."""
        self._workers_can_start = True
        """False after a worker ended before its first part, as the others would."""

    def run(self) -> Iterator[Row]:
        """The rows of all parts as they come. The last row of each part has its `result`."""
        try:
            for number, part in enumerate(self._plan.parts):
                if self._workers_can_start and self._fits(part):
                    yield from self._run_part(part, is_last=number == len(self._plan.parts) - 1)
                else:
                    yield {"part": part.name, "result": "skipped", "left_s": round(self._left_s(), 1)}
        finally:
            while self._workers:
                self._workers.pop().kill()

    def _left_s(self) -> float:
        return self._plan.budget_s - (self._clock() - self._start_s)

    def _fits(self, part: Part) -> bool:
        """Whether the rest of the budget is enough for the part and for the last one, whose time is reserved."""
        last = self._plan.parts[-1]
        needed_s = part.estimate_s + (0 if part is last else last.estimate_s)
        return self._left_s() > 0 and self._plan.estimate_factor * needed_s <= self._left_s()

    def _run_part(self, part: Part, is_last: bool) -> Iterator[Row]:
        start_s = self._clock()
        worker = self._take_worker(is_last)
        worker.start(part, self._plan.scale)
        deadline_s = start_s + min(self._plan.limit_factor * part.limit_s, self._left_s())
        rows, incomplete = 0, list[str]()
        result: Result | None = None
        error: str | None = None
        while result is None:
            try:
                message = worker.receive(deadline_s - self._clock())
            except queue.Empty:
                result, error = "timed out", f"killed after {self._clock() - start_s:.0f} s"
                continue
            if message is None:
                result, error = "failed", f"its process ended with status {worker.wait()}"
                self._workers_can_start = worker.ready
            elif "ready" in message:
                worker.ready = True
            elif "row" in message:
                rows += 1
                incomplete += missing_figures(message["row"])
                yield {"part": part.name, **message["row"]}
            else:
                error = message["error"]
                result = "failed" if error else "done" if rows and not incomplete else "incomplete"
        self._release_worker(worker, result)
        missing = {"missing": sorted(set(incomplete))} if incomplete else {}
        yield {
            "part": part.name,
            "result": result,
            "rows": rows,
            "elapsed_s": round(self._clock() - start_s, 1),
            **missing,
            **({"error": error} if error else {}),
        }

    def _take_worker(self, is_last: bool) -> Worker:
        wanted = 1 if is_last or self._plan.reuse_worker else 2
        while len(self._workers) < wanted:
            self._workers.append(Worker(self._plan.modules, self._environment))
        return self._workers[0]

    def _release_worker(self, worker: Worker, result: Result) -> None:
        if self._plan.reuse_worker and result in ("done", "incomplete"):
            return
        self._workers.remove(worker)
        if result == "timed out":
            worker.kill()
        else:
            worker.close()
