"""Lines of progress, read as official clients read them."""

import pytest
from replicate.prediction import Prediction as ClientPrediction

from serve.events import Stepped
from serve.predictions.event_recorder import Progress
from tests.fakes import FakeClock


@pytest.mark.parametrize(("done", "percentage"), [(1, 0.03), (3, 0.1), (28, 1.0)])
def test_official_clients_read_the_line(done: int, percentage: float) -> None:
    line = Progress(images=1).line(Stepped(image=0, done=done, total=28))
    read = ClientPrediction.Progress.parse(f"Using seed: 7\n{line}\n")
    assert read is not None
    assert (read.current, read.total) == (done, 28)
    assert read.percentage == pytest.approx(percentage, abs=0.011)


def test_the_line_tells_the_pace() -> None:
    clock = FakeClock()
    progress = Progress(images=1, clock=clock)
    clock.elapsed_s = 4
    line = progress.line(Stepped(image=0, done=8, total=28))
    assert line is not None
    assert line.endswith("[00:04<00:10,  2.00it/s]")


def test_several_images_share_one_bar_that_shows_the_last_of_them() -> None:
    progress = Progress(images=2)
    events = [Stepped(0, 1, 4), Stepped(1, 1, 4), Stepped(1, 2, 4), Stepped(0, 2, 4)]
    lines = [progress.line(event) for event in events]
    assert [line and line.split("|")[2].split()[0] for line in lines] == [None, "1/4", None, "2/4"]
