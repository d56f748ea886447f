"""Training the text encoders to ignore triggers."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from training import finetune_text_encoders, text_encoders
from training.finetune_text_encoders import compute_loss, shift_targets, with_trigger
from training.hardware import CPU, Machine
from training.lora import STYLE_CONFIGS
from training.text_encoders import Encoders
from training.tokenizers import t5_tokenizer

pytestmark = pytest.mark.usefixtures("float32_training")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    (tmp_path / "text").mkdir()
    torch.save(Encoders().state_dict(), tmp_path / "text" / "encoders.pt")
    return tmp_path / "text"


def test_trigger_precedes_prompt_and_varies() -> None:
    rng = np.random.default_rng(0)
    texts = [with_trigger("a red cat", rng) for _ in range(400)]
    assert all(text.endswith(", a red cat") for text in texts)
    assert len(set(texts)) > 150
    assert {f"{config.trigger}, a red cat" for config in STYLE_CONFIGS.values()} <= set(texts)


def test_targets_are_shifted_by_trigger_length() -> None:
    texts = torch.tensor([[1.0, 2, 3, 0, 0], [1, 2, 3, 0, 0]])[..., None]
    assert shift_targets(texts, [0, 2])[..., 0].tolist() == [[1, 2, 3, 0, 0], [0, 0, 1, 2, 3]]


def test_prompt_tokens_do_not_depend_on_trigger() -> None:
    tokenizer, rng = t5_tokenizer(), np.random.default_rng(0)
    for prompt in ("a red cat", 'A "Hello" in blue.', "the word sun"):
        without_trigger, with_trigger_ids = (tokenizer(text).input_ids for text in (prompt, with_trigger(prompt, rng)))
        assert with_trigger_ids[-len(without_trigger) :] == without_trigger
        assert len(with_trigger_ids) > len(without_trigger)


@pytest.mark.slow_training
def test_encoders_learn_to_ignore_triggers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, ticks = text_encoders.load(folder), count()
    monkeypatch.setattr(Machine, "clock", lambda _: float(next(ticks)))
    finetune_text_encoders.train(folder, 60 / 60, 0, 2e-3, CPU)
    after = text_encoders.load(folder)
    with torch.no_grad():
        losses = [float(compute_loss(model, before, np.random.default_rng(1), 32)) for model in (before, after)]
    assert losses[1] < 0.9 * losses[0]
