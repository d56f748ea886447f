"""Base, [dev] and [schnell] one after the other, on pictures of one token: each takes up what the one before left."""

import csv
from itertools import count
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from training import autoencoder, distil, encoders, run, teacher, transformer
from training.curriculum import ONE_THING, Lesson, Stage
from training.machine import CPU, Machine

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")
STAGES = (Stage(1.0, {"tiny": 1.0}),)
STEPS, STUDENT_STEPS = 40, 6
"""Of a clock that tells one second for each step, so that a slow machine learns as much as a fast one."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder and encoders that have learned nothing, and what is trained on them."""
    runs = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    vae = AutoencoderKL(**autoencoder.CONFIG, shift_factor=0.1, scaling_factor=0.8)
    vae.save_pretrained(runs / "autoencoder" / "vae")
    (runs / "text").mkdir()
    torch.save(encoders.Encoders().state_dict(), runs / "text" / "encoders.pt")
    return runs


@pytest.fixture(autouse=True)
def _tiny_lessons_by_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(Machine, "clock", lambda _: float(next(ticks)))
    monkeypatch.setattr(run, "LOG_EVERY_STEPS", 10)
    monkeypatch.setattr(teacher, "LESSONS", {"tiny": Lesson("tiny", (1, 1), ONE_THING, 4, 2)})


def first_and_last_loss(folder: Path) -> tuple[float, float]:
    with (folder / "log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    return losses[0], losses[-1]


def test_the_base_learns(runs: Path) -> None:
    transformer.train(runs, STEPS / 60, 0, STAGES, 2e-3, CPU)
    first, last = first_and_last_loss(runs / "transformer")
    assert last < first
    assert transformer.load(runs / "transformer").config.guidance_embeds is False


@pytest.mark.parametrize("kind", ["dev", "schnell"])
def test_a_student_is_made_of_what_was_trained_before(runs: Path, kind: str) -> None:
    distil.train(kind, runs, STUDENT_STEPS / 60, 0, STAGES, 1e-3, CPU)
    assert transformer.load(runs / kind, guided=kind == "dev").config.guidance_embeds is (kind == "dev")


def test_a_run_that_was_finished_is_not_begun_again(runs: Path) -> None:
    before = (runs / "transformer" / "log.csv").read_text()
    transformer.train(runs, STEPS / 60, 0, STAGES, 2e-3, CPU)
    assert (runs / "transformer" / "log.csv").read_text() == before
