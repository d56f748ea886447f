"""The models that come along draw what they are asked, as the frozen judge sees it."""

import pytest

from benchmarks.artist import Artist
from benchmarks.exams import ONE_THING, Exam, Row, held_out
from benchmarks.recogniser import Recogniser
from benchmarks.scores import scores
from serve.embedded import LORAS, MODELS, lora_file
from training.export import weight_bytes

COUNT = 16


@pytest.mark.parametrize(
    "row", [Row("schnell", "bf16", (512, 512)), Row("dev", "bf16", (256, 256), guidance=3.0)], ids=str
)
def test_each_draws_what_is_asked(row: Row) -> None:
    with Artist(row.variant, str(MODELS / row.variant), row.precision) as artist:
        exam = Exam(artist, row, Recogniser.load(), COUNT, seed=0)
        scenes, prompts = held_out(COUNT, exam.seed, ONE_THING)
        pictures = exam.drawn([exam.order(said, number) for number, said in enumerate(prompts)])
    found = scores(scenes, exam.judge.see(pictures))
    assert found["thing"] >= 0.9
    assert found["ink"] >= 0.8


@pytest.mark.parametrize("name", LORAS)
def test_each_lora_is_small(name: str) -> None:
    assert lora_file(name).stat().st_size < 1e6


def test_all_that_comes_along_fits_the_budget() -> None:
    assert weight_bytes(MODELS) <= 40e6
