"""A Cog runner; Cog's own HTTP server runs it, one prediction at a time."""

import base64
import tempfile

from cog import BaseRunner, Input, Path

from benchmarks.peers.pipeline import Pipeline
from benchmarks.peers.workload import ImageRequest


class Runner(BaseRunner):
    """The pipeline with the inputs of `ImageRequest`."""

    def setup(self) -> None:
        self._pipeline = Pipeline()

    def run(
        self,
        prompt: str,
        seed: int,
        width: int = Input(default=512),
        height: int = Input(default=512),
        num_inference_steps: int = Input(default=4),
        num_outputs: int = Input(default=1),
        output_format: str = Input(default="webp", choices=["webp", "png"]),
    ) -> list[Path]:
        request = ImageRequest(prompt, seed, width, height, num_inference_steps, num_outputs, output_format)
        (uris,) = self._pipeline.generate([request])
        return [_write(uri, output_format) for uri in uris]


def _write(uri: str, output_format: str) -> Path:
    """Writes an image to a file, which the server returns as a `data:` URI."""
    with tempfile.NamedTemporaryFile(suffix=f".{output_format}", delete=False) as file:
        file.write(base64.b64decode(uri.partition(",")[2]))
    return Path(file.name)
