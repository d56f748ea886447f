"""Lines of progress, read as official clients read them."""

import pytest
from replicate.prediction import Prediction as ClientPrediction

from serve.events import StepDone
from serve.predictions.event_recorder import ProgressBar
from tests.fakes import FakeClock


@pytest.mark.parametrize(("done", "percentage"), [(1, 0.03), (3, 0.1), (28, 1.0)])
def test_official_clients_read_the_line(done: int, percentage: float) -> None:
    line = ProgressBar(images=1).update(StepDone(image=0, step=done, total=28))
    read = ClientPrediction.Progress.parse(f"Using seed: 7\n{line}\n")
    assert read is not None
    assert (read.current, read.total) == (done, 28)
    assert read.percentage == pytest.approx(percentage, abs=0.011)


def test_the_line_tells_the_pace() -> None:
    clock = FakeClock()
    progress = ProgressBar(images=1, clock=clock)
    clock.elapsed_s = 4
    line = progress.update(StepDone(image=0, step=8, total=28))
    assert line is not None
    assert line.endswith("[00:04<00:10,  2.00it/s]")


def test_several_images_share_one_bar_that_shows_the_last_of_them() -> None:
    progress = ProgressBar(images=2)
    events = [StepDone(0, 1, 4), StepDone(1, 1, 4), StepDone(1, 2, 4), StepDone(0, 2, 4)]
    lines = [progress.update(event) for event in events]
    assert [line and line.split("|")[2].split()[0] for line in lines] == [None, "1/4", None, "2/4"]
