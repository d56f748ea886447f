"""A BentoML service with adaptive batching; `bentoml serve` runs it."""

from typing import Any

import bentoml

from benchmarks.peers.workload import ImageRequest

MAX_BATCH = 8
TIMEOUT_S = 600


@bentoml.service(workers=1, traffic={"timeout": TIMEOUT_S})
class FluxService:
    """The pipeline behind one batchable method. Its argument is the list of a batch."""

    def __init__(self) -> None:
        # Imported in the worker, so that no other process imports torch.
        from benchmarks.peers.pipeline import Pipeline

        self._pipeline = Pipeline()

    # Requests are rejected if the dispatcher expects them to take longer than `max_latency_ms`.
    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=TIMEOUT_S * 1000)
    def generate(self, requests: list[dict[str, Any]]) -> list[list[str]]:
        return self._pipeline.generate([ImageRequest(**request) for request in requests])
