"""Clients that create predictions and wait for them while the service loses processes."""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from tests.cluster.client import contents

WAIT_S = 10
POLL_S = 2.0
RECONNECT_S = 1.0
ANSWER_LIMIT_S = 30.0
"""A client gets an answer that it can act on within this time: its prediction, or when to try again."""
RETRY_STATUSES = frozenset({429, 503})


@dataclass(frozen=True)
class Outcome:
    """What one client has got for its prediction."""

    prediction_id: str
    error: str | None
    images: Sequence[bytes]
    wait_s: float
    """From its first request to its image."""


@dataclass
class RetryingClient:
    """Sends requests until they succeed, and obeys `Retry-After`. Raises `HTTPStatusError` for other errors."""

    url: str
    connection_errors_s: list[float] = field(default_factory=list)
    """When a connection failed. The service listens unless it was killed as a whole."""
    silences_s: list[float] = field(default_factory=list)
    """When a request got no answer within `ANSWER_LIMIT_S`."""
    retries: list[int] = field(default_factory=list)
    """The status of each response that asked for another request."""
    longest_answer_s: float = 0.0
    stopped: threading.Event = field(default_factory=threading.Event)

    def predict(self, key: str, inputs: Mapping[str, Any]) -> Outcome:
        start_s = time.monotonic()
        headers = {"Prefer": f"wait={WAIT_S}", "Idempotency-Key": key}
        with httpx.Client(base_url=self.url, timeout=ANSWER_LIMIT_S, verify=False) as http:
            prediction = self._send(http, "POST", "/v1/predictions", json={"input": inputs}, headers=headers)
            while prediction["completed_at"] is None:
                self._sleep(POLL_S)
                prediction = self._send(http, "GET", f"/v1/predictions/{prediction['id']}")
        error = prediction["error"]
        images = [] if error else contents(prediction)
        return Outcome(prediction["id"], error, images, time.monotonic() - start_s)

    def _send(self, http: httpx.Client, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        while True:
            start_s = time.monotonic()
            try:
                response = http.request(method, path, **arguments)
            except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout):
                self.connection_errors_s.append(time.monotonic())
                self._sleep(RECONNECT_S)
                continue
            except httpx.ReadTimeout:
                self.silences_s.append(time.monotonic())
                continue
            self.longest_answer_s = max(self.longest_answer_s, time.monotonic() - start_s)
            if response.status_code not in RETRY_STATUSES:
                return dict(response.raise_for_status().json())
            assert response.headers["content-type"].startswith("application/"), response.text
            self.retries.append(response.status_code)
            self._sleep(float(response.headers["retry-after"]))

    def _sleep(self, duration_s: float) -> None:
        if self.stopped.wait(duration_s):
            raise RuntimeError("the test has ended")


class Crowd:
    """Runs `size` retrying clients at once."""

    def __init__(self, url: str, size: int) -> None:
        self._clients = [RetryingClient(url) for _ in range(size)]
        self._idle = list(self._clients)
        self._threads = ThreadPoolExecutor(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.stopped.set()
        self._threads.shutdown(cancel_futures=True)

    def start(self, requests: Iterable[tuple[str, Mapping[str, Any]]]) -> "list[Future[Outcome]]":
        """Sends each request, an idempotency key and inputs, by the next client that is idle."""
        return [self._threads.submit(self._predict, *each) for each in requests]

    @property
    def connection_errors_s(self) -> list[float]:
        return [error_s for client in self._clients for error_s in client.connection_errors_s]

    @property
    def silences_s(self) -> list[float]:
        return [silence_s for client in self._clients for silence_s in client.silences_s]

    def summary(self) -> str:
        retries = sum((Counter(client.retries) for client in self._clients), Counter())
        longest_s = max(client.longest_answer_s for client in self._clients)
        errors = len(self.connection_errors_s)
        return f"retries {dict(retries)}, {errors} connection errors, answers within {longest_s:.1f} s"

    def _predict(self, key: str, inputs: Mapping[str, Any]) -> Outcome:
        client = self._idle.pop()
        try:
            return client.predict(key, inputs)
        finally:
            self._idle.append(client)
