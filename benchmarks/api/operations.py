"""Sends the requests of one operation and measures their latencies."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx

from benchmarks.api.stored_rows import StoredPrediction, StoredPredictions
from benchmarks.report import percentiles
from serve.settings import read_secrets

WARM_UP_REQUESTS = 8
"""To each process, before the measured ones."""
REQUEST_TIMEOUT_S = 60.0
RANGE = timedelta(minutes=30)
PATH = "/v1/predictions"


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None


def _create(_: StoredPrediction) -> Request:
    body = {"input": {"prompt": "a red sailboat"}}
    return Request("POST", PATH, headers={"Prefer": "respond-async"}, body=body)


def _list(query: Mapping[str, str]) -> Request:
    return Request("GET", PATH, query)


def _list_between(stored: StoredPrediction) -> Request:
    limits = {"created_after": stored.created_at, "created_before": stored.created_at + RANGE}
    return _list({name: moment.isoformat() for name, moment in limits.items()})


OPERATIONS: Mapping[str, Callable[[StoredPrediction], Request]] = {
    "create": _create,
    "get": lambda stored: Request("GET", f"{PATH}/{stored.id}"),
    "list": lambda _: _list({}),
    "list older": lambda stored: _list({"cursor": stored.id}),
    "list newer": lambda stored: _list({"cursor": f"newer-{stored.id}"}),
    "list between": _list_between,
}
"""The request of each operation, about a random stored prediction."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a measurement ends."""

    requests: int
    seconds: float


@dataclass
class Measurement:
    latencies_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    """By HTTP status, or by the class of the error."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Successful requests per second, and their latencies in milliseconds."""
        latencies_s = percentiles(self.latencies_s)
        return {
            "requests": len(self.latencies_s),
            "per_s": round(len(self.latencies_s) / self.seconds, 1),
            **{name.replace("_s", "_ms"): round(1000 * value, 1) for name, value in latencies_s.items()},
            "failures": dict(self.failures),
        }


async def measure(
    urls: Sequence[str], operation: str, stored: StoredPredictions, concurrency: int, limits: Limits
) -> Measurement:
    """Sends requests to all `urls` in turn, `concurrency` at a time."""
    generator = random.Random(0)
    async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, headers=_auth_headers()) as client:

        async def send(number: int) -> None:
            request = OPERATIONS[operation](stored.choose(generator))
            url = urls[number % len(urls)] + request.path
            response = await client.request(
                request.method, url, params=request.query, headers=request.headers, json=request.body
            )
            response.raise_for_status()

        await asyncio.gather(*(send(number) for number in range(WARM_UP_REQUESTS * len(urls))))
        return await _run(send, concurrency, limits)


async def _run(send: Callable[[int], Any], concurrency: int, limits: Limits) -> Measurement:
    measurement, numbers = Measurement(), itertools.count()
    begin_s = time.perf_counter()

    async def run_client() -> None:
        while (number := next(numbers)) < limits.requests and time.perf_counter() - begin_s < limits.seconds:
            start_s = time.perf_counter()
            try:
                await send(number)
            except httpx.HTTPStatusError as error:
                measurement.failures[str(error.response.status_code)] += 1
            except httpx.HTTPError as error:
                measurement.failures[type(error).__name__] += 1
            else:
                measurement.latencies_s.append(time.perf_counter() - start_s)

    await asyncio.gather(*(run_client() for _ in range(concurrency)))
    measurement.seconds = time.perf_counter() - begin_s
    return measurement


def _auth_headers() -> dict[str, str]:
    token = read_secrets().api_token
    return {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}


async def create_prediction(url: str) -> str:
    """Creates a prediction, waits until it has succeeded, and returns its id."""
    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S, headers=_auth_headers()) as client:
        request = _create(None)
        response = await client.post(PATH, json=request.body, headers={"Prefer": "wait"})
        response.raise_for_status()
        prediction = response.json()
        assert prediction["status"] == "succeeded", prediction
        return str(prediction["id"])
