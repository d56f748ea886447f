"""Measures what a request of the service costs beyond the time of its engine, and in which part of its path."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from benchmarks.load import parse_server_timing

REPLICA_STAGES = ("lora", "text", "encode_image", "denoise", "decode", "safety", "encode")
"""The stages that run in the replica; the others are waits, or run in the ingress."""
WARM_UP_REQUESTS = 5
REQUEST_TIMEOUT_S = 60.0
PARTS = {
    "wall_ms": "HTTP request, small image",
    "replica_ms": "stages in the replica",
    "beyond_ms": "beyond these stages",
    "request_ms": "- from the client to the record: proxy, ingress, validation",
    "first_event_ms": "- until the first event of the replica: handle, router, replica",
    "events_ms": "- further events, storing the image",
    "response_ms": "- from the end of the record to the client",
    "health_check_ms": "for comparison: GET /health-check, which ends in the ingress",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Times of one request in seconds since 1970, as the client and the service's clock have them."""

    sent_s: float
    created_s: float
    completed_s: float
    received_s: float
    stages_ms: Mapping[str, float]
    health_check_ms: float


def measure_overhead(url: str, path: str, body: object, requests: int) -> dict[str, float]:
    """Medians of `PARTS` over requests that are sent one at a time."""
    with httpx.Client(base_url=url, timeout=REQUEST_TIMEOUT_S) as http:
        for _ in range(WARM_UP_REQUESTS):
            http.post(path, json=body).raise_for_status()
        return summarise([_send(http, path, body) for _ in range(requests)])


def split(sample: Sample) -> dict[str, float]:
    """Milliseconds of each of `PARTS`. `request_ms` to `response_ms` add up to `beyond_ms`."""
    replica_ms = sum(sample.stages_ms.get(stage, 0.0) for stage in REPLICA_STAGES)
    wall_ms = 1000 * (sample.received_s - sample.sent_s)
    record_ms = 1000 * (sample.completed_s - sample.created_s)
    first_event_ms = sample.stages_ms.get("queue", 0.0)
    return {
        "wall_ms": wall_ms,
        "replica_ms": replica_ms,
        "beyond_ms": wall_ms - replica_ms,
        "request_ms": 1000 * (sample.created_s - sample.sent_s),
        "first_event_ms": first_event_ms,
        "events_ms": record_ms - replica_ms - first_event_ms,
        "response_ms": 1000 * (sample.received_s - sample.completed_s),
        "health_check_ms": sample.health_check_ms,
    }


def summarise(samples: Sequence[Sample]) -> dict[str, float]:
    parts = [split(sample) for sample in samples]
    return {name: round(statistics.median(part[name] for part in parts), 1) for name in PARTS}


def overhead_table(overhead: Mapping[str, float]) -> str:
    """A Markdown table of the medians."""
    rows = [f"| {title} | {overhead[name]:.1f} |" for name, title in PARTS.items() if name in overhead]
    return "\n".join(["| | median, ms |", "| --- | --: |", *rows])


def _send(http: httpx.Client, path: str, body: object) -> Sample:
    sent_s = time.time()
    response = http.post(path, json=body).raise_for_status()
    received_s = time.time()
    record: dict[str, Any] = response.json()
    check_s = time.perf_counter()
    http.get("/health-check").raise_for_status()
    return Sample(
        sent_s=sent_s,
        created_s=datetime.fromisoformat(record["created_at"]).timestamp(),
        completed_s=datetime.fromisoformat(record["completed_at"]).timestamp(),
        received_s=received_s,
        stages_ms=parse_server_timing(response.headers["server-timing"]),
        health_check_ms=1000 * (time.perf_counter() - check_s),
    )
