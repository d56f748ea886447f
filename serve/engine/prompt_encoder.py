"""Encodes prompts with T5 and CLIP and caches the embeddings.

Prompts are encoded one at a time: another prompt in the batch would change the result's bits.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve.engine.checkpoint import Checkpoint
from serve.engine.lora_manager import NO_LORAS, ActiveLoras, LoraScales


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """An encoded prompt, in the transformer's dtype."""

    prompt_embeds: Tensor
    """From T5: [1, max_sequence_length, width]."""
    pooled_prompt_embeds: Tensor
    """From CLIP: [1, width]."""
    warnings: tuple[str, ...]
    """A line for each encoder that truncated the prompt."""


class PromptEncoder:
    """Encodes prompts, with an LRU cache."""

    def __init__(self, checkpoint: Checkpoint, cache_entries: int) -> None:
        """`cache_entries` 0 turns the cache off."""
        self._checkpoint = checkpoint
        self._cache_entries = cache_entries
        self._cache: OrderedDict[tuple[str, LoraScales], EncodedPrompt] = OrderedDict()
        self.hits = 0
        """Prompts that were in the cache."""
        self.misses = 0

    @torch.no_grad()
    def encode(self, prompt: str, active_loras: ActiveLoras = NO_LORAS) -> EncodedPrompt:
        """Encodes `prompt` with the LoRAs that adapt CLIP."""
        key = (prompt, active_loras.clip_scales)
        cached = self._cache.get(key)
        embeds = cached or self._encode(prompt, active_loras)
        self.hits += cached is not None
        self.misses += cached is None
        self._cache[key] = embeds
        self._cache.move_to_end(key)
        if len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)
        return embeds

    def _encode(self, prompt: str, active_loras: ActiveLoras) -> EncodedPrompt:
        models = self._checkpoint
        dtype = models.transformer.dtype
        clip_length = models.clip_tokenizer.model_max_length
        clip_ids = self._tokenize(models.clip_tokenizer, prompt, clip_length)
        t5_ids = self._tokenize(models.t5_tokenizer, prompt, models.max_sequence_length)
        with models.lora_slots.apply(models.lora_slots.batch([active_loras.selection])):
            pooled = models.clip(clip_ids).pooler_output
        return EncodedPrompt(
            prompt_embeds=models.t5(t5_ids).last_hidden_state.to(dtype),
            pooled_prompt_embeds=pooled.to(dtype),
            warnings=(
                *_truncation_warning(models.t5_tokenizer, prompt, models.max_sequence_length, "T5"),
                *_truncation_warning(models.clip_tokenizer, prompt, clip_length, "CLIP"),
            ),
        )

    def _tokenize(self, tokenizer: Any, prompt: str, length: int) -> Tensor:
        tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: Tensor = tokens.input_ids.to(self._checkpoint.device)
        return ids


def _truncation_warning(tokenizer: Any, prompt: str, length: int, name: str) -> tuple[str, ...]:
    tokens = len(tokenizer(prompt, verbose=False).input_ids)
    return (f"{name} reads only the first {length} of the prompt's {tokens} tokens",) if tokens > length else ()
