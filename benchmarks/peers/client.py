"""Sends the requests of a scenario to a server and records their latencies."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from http import HTTPStatus

import httpx

from benchmarks.peers.servers import Server, read_outputs
from benchmarks.peers.workload import ImageRequest, Scenario, TimedRequest

REQUEST_TIMEOUT_S = 300.0
BUSY_RETRY_S = 0.05
PROBE = ImageRequest("probe", seed=0, width=256, height=256, num_inference_steps=1)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a server did with the requests of one scenario in one round."""

    seconds: float
    """From the first request to the last response."""
    latencies_s: tuple[float, ...]
    """Of the requests that succeeded, from the time at which the client sent them."""
    canceled: int = 0
    errors: tuple[str, ...] = ()


@dataclass
class _Results:
    latencies_s: list[float] = field(default_factory=list)
    canceled: int = 0
    errors: list[str] = field(default_factory=list)
    end_s: float = 0.0


class Client:
    """A client of one server."""

    def __init__(self, server: Server, url: str) -> None:
        self._server = server
        self.url = url

    def generate(self, request: ImageRequest) -> list[str]:
        """The `data:` URIs of one request's images. Raises httpx.HTTPError or ValueError."""
        body = self._server.make_body(request)
        response = httpx.post(self.url + self._server.path, json=body, timeout=REQUEST_TIMEOUT_S)
        return read_outputs(response.raise_for_status().json())

    def is_ready(self) -> bool:
        """Whether the server generates a small image."""
        try:
            self.generate(PROBE)
        except (httpx.HTTPError, ValueError):
            return False
        return True

    def compute_dtype(self) -> str:
        """The dtype that the service reports for a prediction. Raises KeyError for other servers."""
        response = httpx.post(
            self.url + self._server.path, json=self._server.make_body(PROBE), timeout=REQUEST_TIMEOUT_S
        )
        return str(response.raise_for_status().json()["metrics"]["compute_dtype"])

    async def run(self, scenario: Scenario) -> Turn:
        """Runs a scenario.

        A small request before it, and one after it that waits until the server has no work left, are not timed: a
        server that was paused has to catch up first.
        """
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        results = _Results()
        async with httpx.AsyncClient(base_url=self.url, timeout=REQUEST_TIMEOUT_S, limits=limits) as http:
            await self._post(http, PROBE)
            start_s = time.perf_counter()
            await self._send_all(http, scenario.requests, scenario.in_flight, results)
            seconds = results.end_s - start_s
            await self._post(http, PROBE)
        return Turn(seconds, tuple(results.latencies_s), results.canceled, tuple(results.errors))

    async def _send_all(
        self, http: httpx.AsyncClient, requests: Sequence[TimedRequest], in_flight: int, results: _Results
    ) -> None:
        clients = asyncio.Semaphore(in_flight)
        accepted = asyncio.Semaphore(self._server.max_in_flight) if self._server.max_in_flight else None

        async def send(request: TimedRequest) -> None:
            async with clients:
                start_s = time.perf_counter()
                try:
                    async with asyncio.timeout(request.cancel_after_s), AsyncExitStack() as stack:
                        if accepted:
                            await stack.enter_async_context(accepted)
                        await self._post(http, request.image)
                except TimeoutError:
                    results.canceled += 1
                except (httpx.HTTPError, ValueError) as error:
                    results.errors.append(f"{type(error).__name__}: {error}")
                else:
                    results.end_s = time.perf_counter()
                    results.latencies_s.append(results.end_s - start_s)

        # Tasks start in the order of their creation, and a semaphore admits them in this order.
        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(send(request))

    async def _post(self, http: httpx.AsyncClient, request: ImageRequest) -> None:
        """Sends a request, and again while the server answers that it is busy, as Cog does until it has canceled."""
        body = self._server.make_body(request)
        while (response := await http.post(self._server.path, json=body)).status_code == HTTPStatus.CONFLICT:
            await asyncio.sleep(BUSY_RETRY_S)
        outputs = read_outputs(response.raise_for_status().json())
        if len(outputs) != request.num_outputs:
            raise ValueError(f"{len(outputs)} images instead of {request.num_outputs}")
