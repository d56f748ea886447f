"""Decides which changes of a running prediction are sent to its webhook, and when."""

import time
from collections.abc import Callable, Collection

from serve.predictions.prediction import Output, Prediction
from serve.predictions.webhook import WebhookEvent

THROTTLE_S = 0.5
"""Minimum time between a request and the next one for `output` and `logs`, as Replicate documents."""


class Progress:
    """What was sent of one prediction so far. `events` are those that its caller wants."""

    def __init__(self, events: Collection[WebhookEvent], clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._clock = clock
        self._sent_s: float | None = None
        self._started = False
        self._outputs: tuple[Output, ...] = ()
        self._logs = ""

    def pending(self, prediction: Prediction) -> set[WebhookEvent]:
        """The wanted events that have happened and were not sent, without `completed`.

        Logs from before the start are sent afterwards, so that the first event is always `start`.
        """
        if prediction.started_at is None:
            return set()
        happened: dict[WebhookEvent, bool] = {
            "start": not self._started,
            # A prediction that starts again in another process has no outputs for some time.
            "output": bool(prediction.outputs) and prediction.outputs != self._outputs,
            "logs": prediction.logs != self._logs,
        }
        return {event for event, has_happened in happened.items() if has_happened and event in self._events}

    def wait_s(self, prediction: Prediction) -> float | None:
        """Seconds until the state of the prediction has to be sent; None if nothing of it is pending."""
        pending = self.pending(prediction)
        if not pending:
            return None
        if "start" in pending or self._sent_s is None:
            return 0.0
        return max(0.0, self._sent_s + THROTTLE_S - self._clock())

    def sent(self, prediction: Prediction) -> None:
        """Remembers what was sent, whether or not the receiver has accepted it."""
        self._sent_s = self._clock()
        self._started = prediction.started_at is not None
        self._outputs = prediction.outputs
        self._logs = prediction.logs


def as_started(prediction: Prediction) -> Prediction:
    """The prediction as it was when it started, for a `start` event that is sent after its end."""
    return prediction.model_copy(
        update={"status": "processing", "completed_at": None, "outputs": (), "logs": "", "error": None, "metrics": {}}
    )
