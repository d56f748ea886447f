"""Which changes of a running prediction are sent, and when."""

import pytest

from serve.predictions.prediction import Output, Prediction
from serve.predictions.webhook import WEBHOOK_EVENTS, WebhookEvent
from serve.webhooks.progress import THROTTLE_S, Progress, as_started
from tests.fakes import NOON, FakeClock, prediction

STARTED = prediction().started(NOON)
WITH_LINE = STARTED.with_log_lines("a line")
WITH_IMAGE = WITH_LINE.with_output(Output(index=0, name="0.webp"))


@pytest.mark.parametrize(
    ("state", "events"),
    [
        (prediction().with_log_lines("Using seed: 7"), set()),
        (STARTED, {"start"}),
        (WITH_LINE, {"start", "logs"}),
        (WITH_IMAGE, {"start", "output", "logs"}),
    ],
)
@pytest.mark.parametrize("wanted", [WEBHOOK_EVENTS, ("logs",), ("start", "completed"), ("completed",)])
def test_wanted_events_are_pending(
    state: Prediction, events: set[WebhookEvent], wanted: tuple[WebhookEvent, ...]
) -> None:
    assert Progress(wanted).pending(state) == events & set(wanted)


def test_start_is_sent_at_once_and_once() -> None:
    progress = Progress(WEBHOOK_EVENTS)
    assert progress.wait_s(prediction()) is None
    assert progress.wait_s(STARTED) == 0
    progress.sent(STARTED)
    assert progress.wait_s(STARTED) is None


def test_logs_and_outputs_wait_for_the_throttle() -> None:
    clock = FakeClock()
    progress = Progress(WEBHOOK_EVENTS, clock)
    progress.sent(STARTED)
    assert progress.wait_s(WITH_LINE) == progress.wait_s(WITH_IMAGE) == THROTTLE_S == 0.5
    clock.elapsed_s = 0.2
    assert progress.wait_s(WITH_LINE) == pytest.approx(0.3)
    clock.elapsed_s = 0.7
    assert progress.wait_s(WITH_LINE) == 0
    progress.sent(WITH_LINE)
    assert progress.wait_s(WITH_IMAGE) == 0.5


def test_prediction_that_starts_again_sends_only_new_outputs() -> None:
    wanted: tuple[WebhookEvent, ...] = ("output",)
    progress = Progress(wanted)
    progress.sent(WITH_IMAGE)
    again = WITH_IMAGE.resumed()
    assert progress.pending(again) == set()
    assert progress.pending(again.with_output(Output(index=0, name="0.webp"))) == set()
    assert progress.pending(again.with_output(Output(index=1, name="1.webp"))) == {"output"}


def test_start_of_an_ended_prediction_shows_its_state_at_the_start() -> None:
    started = as_started(WITH_IMAGE.failed(NOON, "an error"))
    assert (started.status, started.outputs, started.logs, started.error) == ("processing", (), "", None)
    assert started.started_at is not None
    assert started.completed_at is None
