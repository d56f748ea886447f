"""The recogniser that comes along reads what it never saw, and does not guess."""

from training.evaluation.recogniser import Recogniser
from training.train_recogniser import validate


def test_the_judge_can_be_trusted() -> None:
    found = validate(Recogniser.load(), seed=1, count=80)
    assert min(found["own"].values()) >= 0.95
    assert max(found["shuffled"].values()) < 0.25
