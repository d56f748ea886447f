"""The interface to previews of images that are being generated; the engine does not make any yet."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from serve.predictions.prediction import Prediction


@dataclass(frozen=True, slots=True)
class Preview:
    """Image `index` of a prediction after `step` steps, as a file in the planned format."""

    index: int
    step: int
    content: bytes


Updates = AsyncGenerator[Prediction | Preview, None]
"""The prediction now and after every change until it has ended, with its previews in between."""
Watch = Callable[[str, int], Updates]
"""The updates of a prediction by its id, with at most that many previews of each image."""
