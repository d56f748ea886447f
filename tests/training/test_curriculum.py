"""The stages of the curriculum, its canvases and its batch sizes."""

import numpy as np

from training.batches import TOKENS_PER_BATCH, batch_size
from training.curriculum import CANVASES, DATASETS, LETTERS, STAGES, STEADY, choose, stage_at
from training.tokenizers import TEXT_TOKENS


def test_stages_are_ordered_and_complete() -> None:
    ends = [stage.until for stage in STAGES]
    assert ends == sorted(ends)
    assert ends[-1] == 1.0
    assert stage_at(0.0) == STAGES[0]
    assert stage_at(STAGES[0].until) == STAGES[1]
    assert stage_at(1.0) == STAGES[-1]
    for stage in STAGES:
        assert stage.datasets.keys() <= DATASETS.keys()
        assert stage.canvases.keys() <= CANVASES.keys()


def test_first_stage_is_steady_and_last_has_words_and_all_canvases() -> None:
    assert {DATASETS[name].mixture for name in STAGES[0].datasets} == {STEADY}
    assert LETTERS in {DATASETS[name].mixture for name in STAGES[-1].datasets}
    assert STAGES[-1].canvases.keys() == CANVASES.keys()


def test_choose_follows_shares() -> None:
    rng = np.random.default_rng(0)
    choices = [choose({"often": 3, "seldom": 1, "never": 0}, rng) for _ in range(200)]
    assert 120 < choices.count("often") < 180
    assert "never" not in choices


def test_batches_have_similar_token_counts_on_all_canvases() -> None:
    for canvas in CANVASES.values():
        tokens = canvas.token_count + TEXT_TOKENS
        assert 0.8 * TOKENS_PER_BATCH < batch_size(canvas.token_count) * tokens < 1.2 * TOKENS_PER_BATCH
