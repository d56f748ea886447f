"""State transitions and serialization of prediction records."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from serve.predictions.prediction import Output, Prediction, Progress, new_id, rfc3339, timestamps
from tests.fakes import NOON, prediction

STARTED_AT = NOON + timedelta(seconds=2)
ENDED_AT = NOON + timedelta(seconds=5)


def test_ended_prediction_has_predict_time_and_total_time() -> None:
    ended = prediction().started(STARTED_AT).succeeded(ENDED_AT)
    assert ended.status == "succeeded"
    assert ended.metrics == {"predict_time": 3.0, "total_time": 5.0}


def test_prediction_that_never_started_has_no_predict_time() -> None:
    failed = prediction().failed(ENDED_AT, "no such image")
    assert (failed.status, failed.error, failed.started_at) == ("failed", "no such image", None)
    assert failed.metrics == {"total_time": 5.0}


@pytest.mark.parametrize(
    "ended",
    [prediction().succeeded(ENDED_AT), prediction().failed(ENDED_AT, "broken"), prediction().canceled(ENDED_AT)],
)
def test_ended_prediction_never_changes(ended: Prediction) -> None:
    results = (
        ended.started(ENDED_AT),
        ended.with_log_lines("late"),
        ended.with_output(Output(index=0, name="out-0.webp")),
        ended.with_stage_times({"queue": 1.0}),
        ended.with_metrics({"mean_batch": 2.0}),
        ended.succeeded(STARTED_AT),
        ended.failed(STARTED_AT, "late"),
        ended.canceled(STARTED_AT),
    )
    assert all(result is ended for result in results)


def test_second_start_does_not_change_started_at() -> None:
    assert prediction().started(STARTED_AT).started(ENDED_AT).started_at == STARTED_AT


def test_every_change_increases_the_revision() -> None:
    original = prediction()
    once = original.with_log_lines("a")
    twice = once.with_log_lines("b")
    assert [original.revision, once.revision, twice.revision] == [0, 1, 2]


def test_log_lines_are_appended() -> None:
    assert prediction().with_log_lines("Using seed: 7", "b").with_log_lines("c").logs == "Using seed: 7\nb\nc\n"


def test_outputs_are_sorted_by_index() -> None:
    first = prediction().with_output(Output(index=2, name="out-2.webp"))
    second = first.with_output(Output(index=0, name="out-0.webp"))
    assert [output.name for output in second.outputs] == ["out-0.webp", "out-2.webp"]


def test_stage_times_add_up() -> None:
    timed = prediction().with_stage_times({"store": 2.0}).with_stage_times({"store": 3.0, "queue": 1.0})
    assert timed.stages_ms == {"store": 5.0, "queue": 1.0}


def test_record_is_unchanged_by_a_json_round_trip() -> None:
    ended = prediction().started(STARTED_AT).with_output(Output(index=0, name="out-0.webp")).succeeded(ENDED_AT)
    assert Prediction.model_validate_json(ended.model_dump_json()) == ended


def test_ids_are_unique_and_have_26_lowercase_letters_and_digits() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(each) == 26 and set(each) <= set("abcdefghijklmnopqrstuvwxyz234567") for each in ids)


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05.000Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC), "2026-01-02T03:04:05.678Z"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))), "2026-01-02T01:04:05.000Z"),
    ],
)
def test_rfc3339_is_utc_with_milliseconds(moment: datetime, text: str) -> None:
    assert rfc3339(moment) == text


def test_missing_timestamps_are_null() -> None:
    assert timestamps(prediction().started(STARTED_AT)) == {
        "created_at": "2026-01-01T12:00:00.000Z",
        "started_at": "2026-01-01T12:00:02.000Z",
        "completed_at": None,
    }


def test_progress_and_previews_of_an_image_do_not_replace_each_other() -> None:
    running = prediction().with_progress(0, 2, 8).with_preview(0, 2, 8).with_progress(0, 5, 8)
    assert running.progress == (Progress(index=0, step=5, total=8, preview_step=2),)
    # A preview that was encoded slowly is older than the last step.
    assert running.with_preview(0, 4, 8).progress == (Progress(index=0, step=5, total=8, preview_step=4),)
    assert running.without_preview(0).progress == (Progress(index=0, step=5, total=8),)
