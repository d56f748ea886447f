"""What a request reports about its stages."""

import pytest

from serve.engine.request import Completed, EngineEvent, GenerationRequest
from serve.engine.request_state import RequestState


def completed(*times: tuple[str, float], steps: bool = True) -> Completed:
    """The final event of a request whose stages took `times`."""
    events: list[EngineEvent] = []
    request = RequestState(1, GenerationRequest("a prompt", (64, 64), 2, (1,)), events.append)
    preparation = [each for each in times if each[0] != "decode"]
    for stage, seconds in preparation:
        request.record_time(stage, seconds)
    request.start()
    if steps:
        request.record_batch(1)
    for stage, seconds in times[len(preparation) :]:
        request.record_time(stage, seconds)
    request.complete()
    event = events[-1]
    assert isinstance(event, Completed)
    return event


def test_intervals_are_those_of_the_stages_that_ran() -> None:
    intervals = completed(("text", 0.25), ("decode", 0.5)).intervals_s
    assert intervals.keys() == {"queue", "text", "denoise", "decode"}
    assert intervals["queue"][1] == intervals["denoise"][0]
    for stage, seconds in (("text", 0.25), ("decode", 0.5)):
        start_s, end_s = intervals[stage]
        assert end_s - start_s == pytest.approx(seconds, abs=0.01)


def test_interval_of_several_images_is_from_the_first_to_the_last() -> None:
    start_s, end_s = completed(("decode", 5.0), ("decode", 1.0)).intervals_s["decode"]
    assert end_s - start_s == pytest.approx(5.0, abs=0.1)


def test_request_without_steps_has_no_interval_of_them() -> None:
    assert completed(("text", 0.25), steps=False).intervals_s.keys() == {"queue", "text"}
