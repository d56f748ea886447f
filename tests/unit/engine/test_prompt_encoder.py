from dataclasses import replace
from typing import Any

import pytest
import torch

from serve.engine.checkpoint import Checkpoint
from serve.engine.prompt_encoder import PromptEncoder
from tests.unit.engine.checkpoints import Checkpoints


class CountingT5:
    """A T5 that counts how often it is asked."""

    def __init__(self, t5: Any) -> None:
        self._t5 = t5
        self.calls = 0

    def __call__(self, ids: torch.Tensor) -> Any:
        self.calls += 1
        return self._t5(ids)


@pytest.fixture
def checkpoint(checkpoints: Checkpoints) -> Checkpoint:
    return checkpoints.get("dev", "bf16")


def test_texts_have_the_checkpoints_length_whatever_the_prompt(checkpoint: Checkpoint) -> None:
    encoder = PromptEncoder(checkpoint, cache_entries=4)
    for prompt in ("", "a red fish", "a red fish " * 200, "手書きの文字"):
        text = encoder.encode(prompt)
        assert text.prompt_embeds.shape == (
            1,
            checkpoint.max_sequence_length,
            checkpoint.transformer.config.joint_attention_dim,
        )
        assert text.pooled_prompt_embeds.shape == (1, checkpoint.transformer.config.pooled_projection_dim)
        assert text.prompt_embeds.dtype == text.pooled_prompt_embeds.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("words", "encoders"),
    [(1, []), (31, []), (32, ["T5"]), (75, ["T5"]), (76, ["T5", "CLIP"]), (2000, ["T5", "CLIP"])],
)
def test_a_prompt_that_is_cut_is_told(checkpoint: Checkpoint, words: int, encoders: list[str]) -> None:
    """A word of the vocabulary is one token; T5 adds one to them, CLIP two."""
    notes = PromptEncoder(checkpoint, cache_entries=1).encode(" ".join(["fish"] * words)).warnings
    assert [note.split()[0] for note in notes] == encoders
    if "T5" in encoders:
        assert notes[0] == f"T5 reads only the first 32 of the prompt's {words + 1} tokens"


@pytest.mark.parametrize(
    ("cache_entries", "prompts", "calls"),
    [
        pytest.param(2, "aaa", 1, id="the same prompt once"),
        pytest.param(2, "abab", 2, id="as many as fit"),
        pytest.param(2, "abacab", 4, id="the one unused for longest goes"),
        pytest.param(1, "abab", 4, id="no more than fit"),
        pytest.param(0, "aaa", 3, id="none"),
    ],
)
def test_the_last_prompts_are_remembered(checkpoint: Checkpoint, cache_entries: int, prompts: str, calls: int) -> None:
    t5: Any = CountingT5(checkpoint.t5)
    encoder = PromptEncoder(replace(checkpoint, t5=t5), cache_entries)
    for prompt in prompts:
        encoder.encode(prompt)
    assert t5.calls == calls


def test_a_remembered_text_is_the_same(checkpoint: Checkpoint) -> None:
    encoder = PromptEncoder(checkpoint, cache_entries=4)
    first = encoder.encode("a red fish")
    assert not torch.equal(first.prompt_embeds, encoder.encode("a blue fish").prompt_embeds)
    assert torch.equal(first.prompt_embeds, encoder.encode("a red fish").prompt_embeds)
