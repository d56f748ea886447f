"""LoRAs that act on CLIP change how their own request's prompt is read, and nobody else's."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from serve.engine.checkpoint import Checkpoint
from serve.engine.lora_manager import ActiveLoras, LoraManager
from serve.engine.prompt_encoder import PromptEncoder
from tests.unit.engine.checkpoints import Checkpoints
from tests.unit.engine.faults import Faulty
from tests.unit.engine.loras import lora_requests, make_lora

PROMPT = "a red sailboat"


@pytest.fixture
def checkpoint(checkpoints: Checkpoints) -> Checkpoint:
    return checkpoints.get("dev", "bf16")


class Reader:
    """Reads prompts with LoRAs, and counts how often CLIP is asked."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.calls = 0
        clip: Any = Faulty(checkpoint.clip, self._count, RuntimeError())
        self._encoder = PromptEncoder(replace(checkpoint, clip=clip), cache_entries=8)
        self._adapters = LoraManager(checkpoint.lora_slots)
        self._loras = {
            "text": make_lora(checkpoint, 1, layers="x_embedder", clip=True),
            "picture": make_lora(checkpoint, 2),
        }

    def _count(self, *_: Any, **__: Any) -> bool:
        self.calls += 1
        return False

    def mix(self, **scales: float) -> ActiveLoras:
        mix = self._adapters.acquire(lora_requests(**scales), self._loras)
        assert mix is not None
        return mix

    def summary(self, **scales: float) -> torch.Tensor:
        return self._encoder.encode(PROMPT, self.mix(**scales)).pooled_prompt_embeds

    def embeddings(self, **scales: float) -> torch.Tensor:
        return self._encoder.encode(PROMPT, self.mix(**scales)).prompt_embeds


@pytest.fixture
def reader(checkpoint: Checkpoint) -> Reader:
    return Reader(checkpoint)


def test_each_lora_and_scale_reads_the_prompt_in_its_own_way(reader: Reader) -> None:
    plain = reader.summary()
    read = [plain, reader.summary(text=1.0), reader.summary(text=0.5), reader.summary(text=-1.0)]
    assert len({tuple(summary.flatten().tolist()) for summary in read}) == 4
    assert torch.equal(reader.summary(), plain)
    assert torch.equal(reader.summary(text=1.0), read[1])
    assert reader.calls == 4


def test_a_lora_for_pictures_only_reads_as_none_does(reader: Reader) -> None:
    assert torch.equal(reader.summary(picture=2.0), reader.summary())
    assert torch.equal(reader.summary(picture=2.0, text=1.0), reader.summary(text=1.0))
    assert reader.calls == 2


def test_the_other_encoder_reads_as_ever(reader: Reader) -> None:
    assert torch.equal(reader.embeddings(text=1.0), reader.embeddings())


def test_what_was_read_without_a_memory_is_the_same(checkpoint: Checkpoint, reader: Reader) -> None:
    """So it was not the memory that kept them apart."""
    forgetful = PromptEncoder(checkpoint, cache_entries=0)
    with_it, without = (
        forgetful.encode(PROMPT, reader.mix(text=1.0)).pooled_prompt_embeds,
        forgetful.encode(PROMPT).pooled_prompt_embeds,
    )
    assert torch.equal(with_it, reader.summary(text=1.0))
    assert torch.equal(without, reader.summary())
