"""Sends the requests of one operation and measures their latencies."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import httpx

from benchmarks.api.stored_rows import StoredPrediction, StoredPredictions
from benchmarks.load import auth_headers
from benchmarks.report import percentiles

WARM_UP_REQUESTS = 8
"""To each process, before the measured ones."""
REQUEST_TIMEOUT_S = 60.0
RANGE = timedelta(hours=1)
PATH = "/v1/predictions"
INPUTS = {"prompt": "a red sailboat"}


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request to one of the processes."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None


def _create(_: StoredPrediction) -> Request:
    return Request("POST", PATH, headers={"Prefer": "respond-async"}, body={"input": INPUTS})


def _get(stored: StoredPrediction) -> Request:
    return Request("GET", f"{PATH}/{stored.id}")


def _list(**query: str) -> Request:
    return Request("GET", PATH, query)


def _list_between(stored: StoredPrediction) -> Request:
    until = stored.created_at + RANGE
    return _list(created_after=stored.created_at.isoformat(), created_before=until.isoformat())


OPERATIONS: Mapping[str, Callable[[StoredPrediction], Request]] = {
    "create": _create,
    "get": _get,
    "list": lambda _: _list(),
    "list older": lambda stored: _list(cursor=stored.id),
    "list newer": lambda stored: _list(cursor=f"newer-{stored.id}"),
    "list between": _list_between,
}
"""The request of each operation, about a stored prediction."""


class Processes(Protocol):
    """The processes that answer."""

    @property
    def urls(self) -> Sequence[str]: ...

    def cpu_s(self) -> float:
        """Their CPU time so far."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A measurement ends when it reaches one of them."""

    requests: int
    seconds: float


@dataclass
class Measurement:
    """The results of the requests of one operation."""

    latencies_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    """By HTTP status, or by the class of the error."""
    seconds: float = 0.0
    cpu_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Times are in milliseconds, CPU time is that of the processes for one request."""
        count = len(self.latencies_s)
        latencies_s = percentiles(self.latencies_s)
        return {
            "requests": count,
            "failures": dict(self.failures),
            "per_s": round(count / self.seconds, 1),
            "cpu_ms": round(1000 * self.cpu_s / max(1, count + self.failures.total()), 1),
            **{name.replace("_s", "_ms"): round(1000 * value, 1) for name, value in latencies_s.items()},
        }


async def measure(
    processes: Processes, operation: str, stored: StoredPredictions, clients: int, limits: Limits
) -> Measurement:
    """Each client sends one request at a time, to all processes in turn."""
    generator = random.Random(0)
    make_request = OPERATIONS[operation]
    async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, headers=auth_headers()) as http:

        async def send(number: int) -> None:
            request = make_request(stored.choose(generator))
            url = processes.urls[number % len(processes.urls)] + request.path
            response = await http.request(
                request.method, url, params=request.query, headers=request.headers, json=request.body
            )
            response.raise_for_status()

        for number in range(WARM_UP_REQUESTS * len(processes.urls)):
            await send(number)
        return await _run_clients(send, processes, clients, limits)


async def _run_clients(
    send: Callable[[int], Awaitable[None]], processes: Processes, clients: int, limits: Limits
) -> Measurement:
    measurement, numbers = Measurement(), itertools.count()
    begin_s, begin_cpu_s = time.perf_counter(), processes.cpu_s()

    async def run_client() -> None:
        while (start_s := time.perf_counter()) < begin_s + limits.seconds and (
            number := next(numbers)
        ) < limits.requests:
            try:
                await send(number)
            except httpx.HTTPStatusError as error:
                measurement.failures[str(error.response.status_code)] += 1
            except httpx.HTTPError as error:
                measurement.failures[type(error).__name__] += 1
            else:
                measurement.latencies_s.append(time.perf_counter() - start_s)

    await asyncio.gather(*(run_client() for _ in range(clients)))
    measurement.seconds = time.perf_counter() - begin_s
    measurement.cpu_s = processes.cpu_s() - begin_cpu_s
    return measurement


async def create_prediction(url: str) -> str:
    """Creates a prediction, waits until it has succeeded, and returns its id."""
    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S, headers=auth_headers()) as http:
        response = await http.post(PATH, json={"input": INPUTS}, headers={"Prefer": "wait"})
    prediction = response.raise_for_status().json()
    if prediction["status"] != "succeeded":
        raise RuntimeError(prediction["error"])
    return str(prediction["id"])
