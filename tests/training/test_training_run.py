"""Runs can be stopped and resumed, and end at their time limit."""

import signal
from itertools import count
from pathlib import Path

import pytest
import torch

from training.training_run import Average, Run


def start_run(folder: Path, seconds: int = 60) -> tuple[torch.nn.Linear, Average, Run]:
    """Returns a run whose clock ticks one second per step."""
    module, ticks = torch.nn.Linear(2, 2), count()
    average = Average(module, 0.9)
    parts = {"module": module, "average": average}
    return module, average, Run(folder, seconds / 60, parts, lambda: float(next(ticks)))


def test_stopped_run_resumes(tmp_path: Path) -> None:
    module, average, run = start_run(tmp_path)

    def run_to_step_40() -> None:
        for step in run.steps():
            with torch.no_grad():
                module.weight += 1
            average.update()
            run.log(loss=1.0 / (step + 1))
            if step == 39:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit, match="resumes"):
        run_to_step_40()
    resumed_module, resumed_average, resumed = start_run(tmp_path)
    assert resumed.step == run.step == 40
    assert resumed.elapsed_s == run.elapsed_s == 40
    assert not resumed.finished
    assert torch.equal(resumed_module.weight, module.weight)
    assert torch.equal(resumed_average.shadow["weight"], average.shadow["weight"])
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    assert (tmp_path / "loss.png").exists()


def test_run_ends_at_time_limit(tmp_path: Path) -> None:
    _, _, run = start_run(tmp_path, seconds=5)
    assert list(run.steps()) == [0, 1, 2, 3, 4]
    assert run.finished
    assert run.progress == 1
    assert list(start_run(tmp_path, seconds=5)[2].steps()) == []


def test_learning_rate_warms_up_and_decays(tmp_path: Path) -> None:
    _, _, run = start_run(tmp_path)
    first = run.rate(1.0)
    run.step = 200
    middle = run.rate(1.0)
    run.elapsed_s = run.limit_s
    assert first < 0.02
    assert middle == 1.0
    assert 0 < run.rate(1.0) < 0.03
