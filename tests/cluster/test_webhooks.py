"""Webhooks survive an absent receiver and a restart of the service."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from replicate.webhook import Webhooks, WebhookSigningSecret

from serve.launch.subprocess_service import LocalService, local_service
from tests.cluster.client import SMALL, get, until
from tests.cluster.processes import kill_all

INPUTS: dict[str, Any] = SMALL | {"num_inference_steps": 4, "aspect_ratio": "custom", "width": 256, "height": 256}
COUNT = 6
LOAD_COUNT = 24
AWAY_S = 60.0
STATUSES = ("starting", "processing", "succeeded")
"""In their order."""


class Receiver(BaseHTTPRequestHandler):
    received: list[tuple[dict[str, str], str]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.received.append((dict(self.headers), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def receiver(port: int = 0) -> Iterator[tuple[int, list[tuple[dict[str, str], str]]]]:
    """Yields its port, and the headers and bodies that it has received."""
    received: list[tuple[dict[str, str], str]] = []
    handler = type("RecordingReceiver", (Receiver,), {"received": received})
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1], received
        finally:
            server.shutdown()
            thread.join()


def create_all(service: LocalService, webhook: str, count: int = COUNT) -> list[str]:
    bodies = [
        {"input": INPUTS | {"prompt": "a red sailboat", "seed": seed}, "webhook": webhook} for seed in range(count)
    ]
    return [httpx.post(f"{service.url}/v1/predictions", json=body, timeout=60).json()["id"] for body in bodies]


def ended_ids(received: list[tuple[dict[str, str], str]]) -> set[str]:
    bodies = [json.loads(body) for _, body in received]
    return {body["id"] for body in bodies if body["status"] == "succeeded"}


def order_of_statuses(received: list[tuple[dict[str, str], str]], prediction_id: str) -> list[int]:
    bodies = [json.loads(body) for _, body in received]
    return [STATUSES.index(body["status"]) for body in bodies if body["id"] == prediction_id]


@pytest.fixture
def settings(tmp_path: Path) -> tuple[str, ...]:
    return (
        *("--set", f"state_folder={tmp_path / 'state'}", "--set", 'webhooks.allowed_hosts=["127.0.0.1"]'),
        *("--set", "pools.dev-fp8.scaling.min_replicas=0", "--set", "pools.schnell.scaling.min_replicas=0"),
    )


@pytest.mark.slow_cluster
def test_no_webhook_is_lost_while_the_receiver_is_away_for_a_minute(
    settings: tuple[str, ...], environment: dict[str, str]
) -> None:
    with local_service(*settings, environment=environment) as service:
        with receiver() as (port, before):
            url = f"http://127.0.0.1:{port}/webhook"
            ids = create_all(service, url, LOAD_COUNT)
            until(lambda: ended_ids(before), bool)
        away_s = time.monotonic()
        ids += create_all(service, url, LOAD_COUNT)
        until(lambda: get(service, ids[LOAD_COUNT])["completed_at"], bool)
        kill_all(service)

    with local_service(*settings, environment=environment) as service:
        ids += create_all(service, url)
        time.sleep(max(0.0, away_s + AWAY_S - time.monotonic()))
        with receiver(port) as (_, after):
            until(lambda: ended_ids(before + after), lambda ended: ended == set(ids), 240)
    for each in ids:
        order = order_of_statuses(before + after, each)
        assert order == sorted(order)


@pytest.mark.slow_cluster
def test_no_webhook_is_lost(settings: tuple[str, ...], environment: dict[str, str]) -> None:
    with receiver() as (port, received), local_service(*settings, environment=environment) as service:
        url = f"http://127.0.0.1:{port}/webhook"
        first = create_all(service, url)
        until(lambda: ended_ids(received), lambda ids: ids == set(first), 180)
        secret = httpx.get(f"{service.url}/v1/webhooks/default/secret").json()["key"]
        for headers, body in received:
            Webhooks.validate(headers=headers, body=body, secret=WebhookSigningSecret(key=secret))

    # Nobody listens on the port until the service has stopped.
    with local_service(*settings, environment=environment) as service:
        second = create_all(service, url)
        until(lambda: [get(service, each)["completed_at"] for each in second], all, 180)
    with receiver(port) as (_, received), local_service(*settings, environment=environment):
        until(lambda: ended_ids(received), lambda ids: ids == set(second), 180)
