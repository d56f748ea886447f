"""Encodes prompts with T5 and CLIP and caches the embeddings.

Prompts are encoded one at a time: another prompt in the batch would change the result's bits.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve.engine.checkpoint import Checkpoint
from serve.engine.lora_manager import NO_LORAS, ActiveLoras, Scales


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """An encoded prompt."""

    prompt_embeds: Tensor
    """From T5: [1, text tokens, width], in the transformer's dtype."""
    pooled_prompt_embeds: Tensor
    """From CLIP: [1, width], in the transformer's dtype."""
    notes: tuple[str, ...]
    """A line for each encoder that did not read the whole prompt."""


class PromptEncoder:
    """Encodes prompts, and remembers the last ones that were asked for."""

    def __init__(self, checkpoint: Checkpoint, cache_entries: int) -> None:
        """`cache_entries` 0 remembers nothing."""
        self._checkpoint = checkpoint
        self._cache_entries = cache_entries
        self._cache: OrderedDict[tuple[str, Scales], PromptEmbeds] = OrderedDict()

    @torch.no_grad()
    def encode(self, prompt: str, mix: ActiveLoras = NO_LORAS) -> PromptEmbeds:
        """The prompt as CLIP reads it with the LoRAs of `mix`."""
        key = (prompt, mix.text_scales)
        text = self._cache.get(key) or self._encode(prompt, mix)
        self._cache[key] = text
        self._cache.move_to_end(key)
        if len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)
        return text

    def _encode(self, prompt: str, mix: ActiveLoras) -> PromptEmbeds:
        models = self._checkpoint
        dtype = models.transformer.dtype
        clip_tokens = models.clip_tokenizer.model_max_length
        clip_ids = self._ids(models.clip_tokenizer, prompt, clip_tokens)
        t5_ids = self._ids(models.t5_tokenizer, prompt, models.max_sequence_length)
        with models.lora_slots.apply([mix.selection]):
            summary = models.clip(clip_ids).pooler_output
        return PromptEmbeds(
            prompt_embeds=models.t5(t5_ids).last_hidden_state.to(dtype),
            pooled_prompt_embeds=summary.to(dtype),
            notes=(
                *_cut(models.t5_tokenizer, prompt, models.max_sequence_length, "T5"),
                *_cut(models.clip_tokenizer, prompt, clip_tokens, "CLIP"),
            ),
        )

    def _ids(self, tokenizer: Any, prompt: str, length: int) -> Tensor:
        tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: Tensor = tokens.input_ids.to(self._checkpoint.device)
        return ids


def _cut(tokenizer: Any, prompt: str, length: int, name: str) -> tuple[str, ...]:
    whole = len(tokenizer(prompt, verbose=False).input_ids)
    return (f"{name} reads only the first {length} of the prompt's {whole} tokens",) if whole > length else ()
