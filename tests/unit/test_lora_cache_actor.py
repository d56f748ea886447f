"""What the cache of a cluster does in its process, without Ray around it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from serve.lora.reference import LocalFile
from serve.lora.weights import Block, unpack
from serve.lora_cache import LoraCacheActor
from serve.settings import Settings


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store in which a block is its own reference."""

    def put(block: Block) -> Block:
        return block

    monkeypatch.setattr("serve.lora_cache.ray.put", put)


def settings(loras: Path, **cache: Any) -> Settings:
    lora: Mapping[str, Any] = {"folders": [loras], "cache": {"folder": loras / "kept", **cache}}
    return Settings.model_validate({"lora": lora})


def ink(folder: Path) -> LocalFile:
    """A LoRA for the first linear of every embedded model."""
    path = folder / "ink.safetensors"
    down, up = torch.ones(2, 64), torch.ones(192, 2)
    tensors = {"transformer.x_embedder.lora_A.weight": down, "transformer.x_embedder.lora_B.weight": up}
    safetensors.torch.save_file(tensors, path)
    return LocalFile(path)


async def test_a_lora_is_checked_for_the_model_of_its_row_and_kept(tmp_path: Path) -> None:
    made, reference = settings(tmp_path), ink(tmp_path)
    cache = LoraCacheActor(made)
    first, second = await cache.get(reference, "schnell"), await cache.get(reference, "schnell")
    (block,) = first.handle.block
    assert unpack(block).transformer["x_embedder"].rank == 2
    assert [first.origin, second.origin] == ["download", "memory"]
    await cache.close()
    later = LoraCacheActor(made)
    assert (await later.get(reference, "schnell")).origin == "disk"
    await later.close()


async def test_a_disk_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_bytes(b"")
    cache = LoraCacheActor(settings(tmp_path, folder=occupied))
    assert (await cache.get(ink(tmp_path), "schnell")).origin == "download"
    await cache.close()


async def test_what_an_earlier_cache_left_unfinished_is_removed(tmp_path: Path) -> None:
    made = settings(tmp_path)
    old, new = (tmp_path / "kept" / "incoming" / name for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    await LoraCacheActor(made).close()
    assert [old.exists(), new.exists()] == [False, True]
