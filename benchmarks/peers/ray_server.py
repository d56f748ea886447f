"""Ray Serve as its documentation shows it: a FastAPI ingress, and a model deployment with `serve.batch`."""

import os
import signal
import tempfile
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.peers.workload import ImageRequest

MAX_BATCH = 8
BATCH_WAIT_S = 0.01
MAX_ONGOING_REQUESTS = 100
RAY_HOST = "127.0.0.3"
"""A loopback address of its own, so that Ray's ports are not those of the service's Ray. Only Linux has it."""
OBJECT_STORE_BYTES = 256 * 2**20

app = FastAPI()


class Model:
    """The pipeline, which gets the requests that arrive while it is busy as its next batch."""

    def __init__(self) -> None:
        # Imported in the worker, so that no other process imports torch.
        from benchmarks.peers.pipeline import Pipeline

        self._pipeline = Pipeline()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def generate(self, bodies: list[dict[str, Any]]) -> list[list[str]]:
        return self._pipeline.generate([ImageRequest(**body) for body in bodies])


@serve.ingress(app)
class Ingress:
    """Passes each request to the model."""

    def __init__(self, model: DeploymentHandle) -> None:
        self._model = model

    @app.post("/generate")
    async def generate(self, body: dict[str, Any]) -> dict[str, list[str]]:
        return {"output": await self._model.generate.remote(body)}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder,
            _node_ip_address=RAY_HOST,
        )
        serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
        deployment = serve.deployment(max_ongoing_requests=MAX_ONGOING_REQUESTS, ray_actor_options={"num_cpus": 0.4})
        serve.run(deployment(Ingress).bind(deployment(Model).bind()))
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
        ray.shutdown()


if __name__ == "__main__":
    main()
