"""The bundled recogniser is accurate on held-out drawings, and inaccurate with the scenes of other drawings."""

from training.evaluation.recogniser import Recogniser
from training.train_recogniser import validate


def test_bundled_recogniser_scores_held_out_drawings() -> None:
    found = validate(Recogniser.load(), seed=1, count=80)
    assert min(found["own"].values()) >= 0.95
    assert max(found["shuffled"].values()) < 0.25
