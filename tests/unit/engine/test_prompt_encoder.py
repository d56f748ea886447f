"""Prompt embeds, truncation warnings, and the cache of embeds."""

from dataclasses import replace

import pytest
import torch

from serve.engine.checkpoint import Checkpoint
from serve.engine.lora_manager import ActiveLoras, LoraManager
from serve.engine.prompt_encoder import PromptEncoder
from tests.unit.engine.faults import observed
from tests.unit.engine.loras import lora_requests, make_lora

PROMPT = "a red sailboat"


class LoraPromptEncoder:
    """Encodes PROMPT with LoRAs, and counts the calls of CLIP. `clip_lora` adapts CLIP, `image_lora` does not."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.clip_calls = 0
        self._encoder = PromptEncoder(
            replace(checkpoint, clip=observed(checkpoint.clip, self._count_call)), cache_entries=8
        )
        self._manager = LoraManager(checkpoint.lora_slots)
        self._loras = {
            "clip_lora": make_lora(checkpoint, 1, layers="x_embedder", clip=True),
            "image_lora": make_lora(checkpoint, 2),
        }

    def _count_call(self) -> None:
        self.clip_calls += 1

    def acquire(self, **scales: float) -> ActiveLoras:
        active_loras = self._manager.acquire(lora_requests(**scales), self._loras)
        assert active_loras is not None
        return active_loras

    def pooled_prompt_embeds(self, **scales: float) -> torch.Tensor:
        return self._encoder.encode(PROMPT, self.acquire(**scales)).pooled_prompt_embeds

    def prompt_embeds(self, **scales: float) -> torch.Tensor:
        return self._encoder.encode(PROMPT, self.acquire(**scales)).prompt_embeds


@pytest.fixture
def lora_encoder(checkpoint: Checkpoint) -> LoraPromptEncoder:
    return LoraPromptEncoder(checkpoint)


def test_embeds_have_the_same_shape_for_every_prompt(checkpoint: Checkpoint) -> None:
    encoder = PromptEncoder(checkpoint, cache_entries=4)
    for prompt in ("", "a red fish", "a red fish " * 200, "手書きの文字"):
        embeds = encoder.encode(prompt)
        assert embeds.prompt_embeds.shape == (
            1,
            checkpoint.max_sequence_length,
            checkpoint.transformer.config.joint_attention_dim,
        )
        assert embeds.pooled_prompt_embeds.shape == (1, checkpoint.transformer.config.pooled_projection_dim)
        assert embeds.prompt_embeds.dtype == embeds.pooled_prompt_embeds.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("words", "encoders"),
    [(1, []), (31, []), (32, ["T5"]), (75, ["T5"]), (76, ["T5", "CLIP"]), (2000, ["T5", "CLIP"])],
)
def test_truncated_prompt_has_a_warning_per_encoder(checkpoint: Checkpoint, words: int, encoders: list[str]) -> None:
    """A word of the vocabulary is one token. T5 adds one token, CLIP two."""
    warnings = PromptEncoder(checkpoint, cache_entries=1).encode(" ".join(["fish"] * words)).warnings
    assert [warning.split()[0] for warning in warnings] == encoders
    if "T5" in encoders:
        assert {"32", str(words + 1)} <= set(warnings[0].split())


@pytest.mark.parametrize(
    ("cache_entries", "prompts", "calls"),
    [
        pytest.param(2, "aaa", 1, id="repeated prompt"),
        pytest.param(2, "abab", 2, id="as many prompts as entries"),
        pytest.param(2, "abacab", 4, id="the least recently used prompt is evicted"),
        pytest.param(1, "abab", 4, id="more prompts than entries"),
        pytest.param(0, "aaa", 3, id="no cache"),
    ],
)
def test_cache_keeps_recent_prompts(checkpoint: Checkpoint, cache_entries: int, prompts: str, calls: int) -> None:
    t5_calls: list[None] = []
    t5 = observed(checkpoint.t5, lambda: t5_calls.append(None))
    encoder = PromptEncoder(replace(checkpoint, t5=t5), cache_entries)
    for prompt in prompts:
        encoder.encode(prompt)
    assert len(t5_calls) == calls
    assert (encoder.misses, encoder.hits) == (calls, len(prompts) - calls)


def test_cache_returns_equal_embeds(checkpoint: Checkpoint) -> None:
    encoder = PromptEncoder(checkpoint, cache_entries=4)
    first = encoder.encode("a red fish")
    assert not torch.equal(first.prompt_embeds, encoder.encode("a blue fish").prompt_embeds)
    assert torch.equal(first.prompt_embeds, encoder.encode("a red fish").prompt_embeds)


def test_clip_lora_changes_pooled_embeds_by_its_scale(lora_encoder: LoraPromptEncoder) -> None:
    plain = lora_encoder.pooled_prompt_embeds()
    all_embeds = [plain, *(lora_encoder.pooled_prompt_embeds(clip_lora=scale) for scale in (1.0, 0.5, -1.0))]
    assert len({tuple(embeds.flatten().tolist()) for embeds in all_embeds}) == 4
    assert torch.equal(lora_encoder.pooled_prompt_embeds(), plain)
    assert torch.equal(lora_encoder.pooled_prompt_embeds(clip_lora=1.0), all_embeds[1])
    assert lora_encoder.clip_calls == 4


def test_lora_without_clip_layers_shares_cached_embeds(lora_encoder: LoraPromptEncoder) -> None:
    embeds = lora_encoder.pooled_prompt_embeds
    assert torch.equal(embeds(image_lora=2.0), embeds())
    assert torch.equal(embeds(image_lora=2.0, clip_lora=1.0), embeds(clip_lora=1.0))
    assert lora_encoder.clip_calls == 2


def test_clip_lora_does_not_change_t5_embeds(lora_encoder: LoraPromptEncoder) -> None:
    assert torch.equal(lora_encoder.prompt_embeds(clip_lora=1.0), lora_encoder.prompt_embeds())


def test_embeds_without_cache_equal_cached_embeds(checkpoint: Checkpoint, lora_encoder: LoraPromptEncoder) -> None:
    """Differences between embeds come from the LoRA and not from the cache."""
    uncached = PromptEncoder(checkpoint, cache_entries=0)
    adapted = uncached.encode(PROMPT, lora_encoder.acquire(clip_lora=1.0)).pooled_prompt_embeds
    plain = uncached.encode(PROMPT).pooled_prompt_embeds
    assert torch.equal(adapted, lora_encoder.pooled_prompt_embeds(clip_lora=1.0))
    assert torch.equal(plain, lora_encoder.pooled_prompt_embeds())
