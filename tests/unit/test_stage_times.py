from serve.stage_times import StageTimes


def test_stage_times_are_listed_in_order() -> None:
    clock = iter([10.0, 12.0, 12.25])
    times = StageTimes(lambda: next(clock))
    times.end("imports")
    times.end("warm-up")
    assert times.seconds == {"imports": 2.0, "warm-up": 0.25}
    assert str(times) == "imports 2.0 s, warm-up 0.2 s"
