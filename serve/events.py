"""What a replica tells about a prediction while it works: plain values and encoded bytes, in the order they happen.

Knows nothing of Ray, torch or HTTP; both ends of a pool handle import it. A stream of events ends with `Finished`, or
with an error of `serve.errors` raised through the handle.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Started:
    """The first denoising step is about to run; until then the prediction waited for its turn."""

    notes: tuple[str, ...] = ()
    """What only the work showed and the caller should know, such as a prompt that was cut. One log line each."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """Image `image` has done `done` of its `total` denoising steps. A replica does not tell of every one."""

    image: int
    step: int
    total: int


@dataclass(frozen=True, slots=True)
class ImageFinished:
    """Image `image` is finished, passed the safety check, and is encoded as the plan asked."""

    image: int
    content: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class ImageFlagged:
    """Image `image` is finished, and was withheld by the safety checker."""

    image: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Every image was told of. `stages_ms` has the wall time of: queue, lora, text, encode_image, denoise, decode,
    safety, encode (stages that did not run are left out)."""

    stages_ms: dict[str, float] = field(default_factory=dict)
    mean_batch: float = 0.0
    """Images that shared a transformer pass with this prediction's, itself included, on average over its steps."""


Event = Started | StepDone | ImageFinished | ImageFlagged | Finished
