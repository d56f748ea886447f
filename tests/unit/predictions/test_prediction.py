"""The steps of a record."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from serve.predictions.prediction import Output, Prediction, new_id, rfc3339, timestamps
from tests.fakes import NOON, prediction

LATER = NOON + timedelta(seconds=2)
END = NOON + timedelta(seconds=5)


def test_a_prediction_that_ran_knows_how_long_it_ran_and_how_long_it_took() -> None:
    ended = prediction().started(LATER).succeeded(END)
    assert ended.status == "succeeded"
    assert ended.metrics == {"predict_time": 3.0, "total_time": 5.0}


def test_a_prediction_that_never_began_has_no_predict_time() -> None:
    failed = prediction().failed(END, "no such picture")
    assert (failed.status, failed.error, failed.started_at) == ("failed", "no such picture", None)
    assert failed.metrics == {"total_time": 5.0}


@pytest.mark.parametrize(
    "ended", [prediction().succeeded(END), prediction().failed(END, "broken"), prediction().canceled(END)]
)
def test_an_ended_prediction_never_changes(ended: Prediction) -> None:
    steps = (
        ended.started(END),
        ended.with_log_lines("late"),
        ended.with_output(Output(index=0, name="out-0.webp")),
        ended.with_stage_times({"queue": 1.0}),
        ended.with_metrics({"mean_batch": 2.0}),
        ended.succeeded(LATER),
        ended.failed(LATER, "late"),
        ended.canceled(LATER),
    )
    assert all(step is ended for step in steps)


def test_it_begins_once() -> None:
    assert prediction().started(LATER).started(END).started_at == LATER


def test_every_change_is_a_new_revision() -> None:
    assert [
        prediction().revision,
        prediction().with_log_lines("a").revision,
        prediction().with_log_lines("a").with_log_lines("b").revision,
    ] == [
        0,
        1,
        2,
    ]


def test_logs_are_lines() -> None:
    assert prediction().with_log_lines("Using seed: 7", "b").with_log_lines("c").logs == "Using seed: 7\nb\nc\n"


def test_outputs_stand_in_the_order_of_their_indices_and_keep_their_gaps() -> None:
    drawn = prediction().with_output(Output(index=2, name="out-2.webp")).with_output(Output(index=0, name="out-0.webp"))
    assert [output.name for output in drawn.outputs] == ["out-0.webp", "out-2.webp"]


def test_times_of_a_stage_add_up() -> None:
    assert prediction().with_stage_times({"store": 2.0}).with_stage_times({"store": 3.0, "queue": 1.0}).stages_ms == {
        "store": 5.0,
        "queue": 1.0,
    }


def test_a_record_survives_json() -> None:
    ended = prediction().started(LATER).with_output(Output(index=0, name="out-0.webp")).succeeded(END)
    assert Prediction.model_validate_json(ended.model_dump_json()) == ended


def test_ids_are_26_lowercase_letters_and_digits_and_do_not_repeat() -> None:
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
def test_times_are_rfc3339_in_utc_with_milliseconds(moment: datetime, text: str) -> None:
    assert rfc3339(moment) == text


def test_moments_that_have_not_come_are_null() -> None:
    assert timestamps(prediction().started(LATER)) == {
        "created_at": "2026-01-01T12:00:00.000Z",
        "started_at": "2026-01-01T12:00:02.000Z",
        "completed_at": None,
    }
