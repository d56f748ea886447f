"""Who requests a prediction, and what the request asks for beside its inputs."""

from dataclasses import dataclass
from datetime import timedelta

from serve.access.caller import ANONYMOUS, Caller
from serve.predictions.idempotency import IdempotencyKey
from serve.predictions.webhook import Webhook


@dataclass(frozen=True, slots=True)
class PreviewOptions:
    """How many previews of each unfinished image are made."""

    max_per_image: int = 0
    steps_between: int = 1
    """At least, between two previews."""

    def count(self, steps: int) -> int:
        """Of an image that is generated in `steps`."""
        return min(self.max_per_image, steps // self.steps_between)


NO_PREVIEWS = PreviewOptions()


@dataclass(frozen=True, slots=True)
class CreateOptions:
    caller: Caller = ANONYMOUS
    attached: bool = False
    """Whether the prediction is cancelled if this process is lost, because its caller is gone too."""
    idempotency: IdempotencyKey | None = None
    """If an earlier request of this caller had the same key, its prediction is returned."""
    lifetime: timedelta | None = None
    """The prediction is canceled if it has not ended after this time."""
    webhook: Webhook | None = None
    id: str | None = None
    """The id of the prediction, if the client chose it."""
    upload_url: str | None = None
    """Images are sent there with PUT."""
    previews: PreviewOptions = NO_PREVIEWS


NO_OPTIONS = CreateOptions()
