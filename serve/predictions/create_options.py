"""What a request for a prediction asks for beside its inputs."""

from dataclasses import dataclass
from datetime import timedelta

from serve.predictions.idempotency import IdempotencyKey


@dataclass(frozen=True, slots=True)
class CreateOptions:
    attached: bool = False
    """Whether the prediction is cancelled if this process is lost, because its caller is gone too."""
    idempotency: IdempotencyKey | None = None
    """If an earlier request had the same key, its prediction is returned."""
    lifetime: timedelta | None = None
    """The prediction is canceled if it has not ended after this time."""


NO_OPTIONS = CreateOptions()
ATTACHED = CreateOptions(attached=True)
