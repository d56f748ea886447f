"""Events of a prediction, streamed from a replica to the ingress in the order they happen.

A stream ends with `Finished`, or with an error of `serve.errors` raised through the handle.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Started:
    """The first denoising step is about to run."""

    notes: tuple[str, ...] = ()
    """Warnings found during generation, such as a truncated prompt. Each becomes a log line."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """Image `image` has completed `step` of its `total` denoising steps. Not every step is reported."""

    index: int
    step: int
    total: int


@dataclass(frozen=True, slots=True)
class Preview:
    """A small preview of image `index`, as it was predicted after `step` of its `total` steps: a webp file."""

    index: int
    step: int
    total: int
    content: bytes


@dataclass(frozen=True, slots=True)
class ImageFinished:
    """Image `image` passed the safety check and is encoded in the planned format."""

    index: int
    content: bytes


@dataclass(frozen=True, slots=True)
class ImageFlagged:
    """Image `image` was withheld by the safety checker."""

    index: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Every image was reported."""

    stages_ms: dict[str, float] = field(default_factory=dict)
    """Wall time of the stages that ran: queue, lora, text, encode_image, denoise, decode, safety, encode."""
    mean_batch: float = 0.0
    """Images per batch, averaged over the steps of this prediction, its own images included."""
    compute_dtype: str = ""
    """The dtype in which the transformer computed: `bfloat16`, `float16` or `float32`."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Sent at once, and then at least every `ALIVE_PERIOD_S` while nothing else happens: the replica has not hung."""


ALIVE_PERIOD_S = 5.0

Event = Alive | Started | StepDone | Preview | ImageFinished | ImageFlagged | Finished
