"""LitServe with one worker, which by default handles one request at a time."""

import os
from typing import Any

import litserve

from benchmarks.peers.workload import ImageRequest

TIMEOUT_S = 600


class FluxApi(litserve.LitAPI):
    """The API of LitServe around the pipeline."""

    def setup(self, device: str) -> None:
        # Imported in the worker, so that no other process imports torch.
        from benchmarks.peers.pipeline import Pipeline

        self._pipeline = Pipeline()

    def decode_request(self, request: dict[str, Any]) -> ImageRequest:
        return ImageRequest(**request)

    def predict(self, x: ImageRequest) -> list[str]:
        (output,) = self._pipeline.generate([x])
        return output

    def encode_response(self, output: list[str]) -> dict[str, list[str]]:
        return {"output": output}


if __name__ == "__main__":
    server = litserve.LitServer(FluxApi(), accelerator="cpu", timeout=TIMEOUT_S)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
