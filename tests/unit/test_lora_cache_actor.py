"""`LoraCacheActor` outside Ray."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from serve import telemetry
from serve.errors import FetchFailed, InvalidLora
from serve.lora.reference import ArchiveMember, LocalFile
from serve.lora.uploaded_file import ContentMissing, UploadedFile
from serve.lora.weights import Block, unpack
from serve.lora_cache_actor import LoraCacheActor
from serve.settings import Settings
from tests.metrics import RecordedMetrics
from tests.unit.lora.archives import zip_of


@pytest.fixture(autouse=True)
def fake_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces `ray.put` by a function that returns the block as its own reference."""

    def put(block: Block) -> Block:
        return block

    monkeypatch.setattr("serve.lora_cache_actor.ray.put", put)


def settings_with(lora_folder: Path, **cache: Any) -> Settings:
    lora: Mapping[str, Any] = {"folders": [lora_folder], "cache": {"folder": lora_folder / "cache", **cache}}
    return Settings.model_validate({"lora": lora})


def write_lora(folder: Path) -> LocalFile:
    """A LoRA for the first linear layer of every embedded model."""
    path = folder / "style.safetensors"
    down, up = torch.ones(2, 64), torch.ones(192, 2)
    tensors = {"transformer.x_embedder.lora_A.weight": down, "transformer.x_embedder.lora_B.weight": up}
    safetensors.torch.save_file(tensors, path)
    return LocalFile(path)


async def test_lora_is_loaded_then_cached_in_memory_and_on_disk(tmp_path: Path) -> None:
    settings, reference = settings_with(tmp_path), write_lora(tmp_path)
    actor = LoraCacheActor(settings)
    first, second = await actor.get(reference, "schnell"), await actor.get(reference, "schnell")
    (block,) = first.handle.block
    assert unpack(block).transformer["x_embedder"].rank == 2
    assert [first.origin, second.origin] == ["download", "memory"]
    await actor.close()
    restarted = LoraCacheActor(settings)
    assert (await restarted.get(reference, "schnell")).origin == "disk"
    await restarted.close()


async def test_requests_and_downloads_are_recorded(tmp_path: Path, metrics: RecordedMetrics) -> None:
    reference = write_lora(tmp_path)
    actor = LoraCacheActor(settings_with(tmp_path))
    tiers = {("memory",): 0, ("disk",): 0, ("download",): 0}
    assert metrics.values[telemetry.LORA_REQUESTS.name] == tiers
    for _ in range(3):
        await actor.get(reference, "schnell")
    assert metrics.values[telemetry.LORA_REQUESTS.name] == {**tiers, ("memory",): 2, ("download",): 1}
    assert metrics.value(telemetry.LORA_DOWNLOAD_BYTES) == reference.path.stat().st_size
    assert len(metrics.observed(telemetry.LORA_DOWNLOAD_SECONDS)) == 1
    await actor.close()


async def test_content_of_an_uploaded_file_is_needed_only_once(tmp_path: Path) -> None:
    settings, path = settings_with(tmp_path), write_lora(tmp_path).path
    content = np.fromfile(path, np.uint8)
    reference = UploadedFile(hashlib.sha256(content.data).hexdigest(), "file-1")
    actor = LoraCacheActor(settings)
    with pytest.raises(ContentMissing):
        await actor.get(reference, "schnell")
    first = await actor.get(reference, "schnell", (), content)
    second = await actor.get(UploadedFile(reference.sha256, "file-2"), "schnell")
    assert [first.origin, second.origin] == ["download", "memory"]
    (block,) = second.handle.block
    assert unpack(block).transformer["x_embedder"].rank == 2
    await actor.close()
    restarted = LoraCacheActor(settings)
    assert (await restarted.get(reference, "schnell")).origin == "disk"
    await restarted.close()


async def test_file_in_an_uploaded_archive_is_selected(tmp_path: Path) -> None:
    settings, weights = settings_with(tmp_path), write_lora(tmp_path).path.read_bytes()
    content = np.frombuffer(zip_of(("a.safetensors", weights), ("b.safetensors", weights)), np.uint8)
    upload = UploadedFile(hashlib.sha256(content.data).hexdigest(), "file-1")
    actor = LoraCacheActor(settings)
    with pytest.raises(InvalidLora, match=r"b\.safetensors"):
        await actor.get(upload, "schnell", (), content)
    resolved = await actor.get(ArchiveMember(upload, "b.safetensors"), "schnell", (), content)
    assert resolved.metadata.rank == 2
    await actor.close()


async def test_uploaded_file_over_the_limit_is_rejected(tmp_path: Path) -> None:
    settings = Settings.model_validate({"lora": {"fetch": {"max_bytes": 10}, "cache": {"folder": tmp_path}}})
    actor = LoraCacheActor(settings)
    with pytest.raises(FetchFailed, match="10 bytes"):
        await actor.get(UploadedFile("0" * 64, "file-1"), "schnell", (), np.zeros(11, np.uint8))
    await actor.close()


async def test_unwritable_cache_folder_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    actor = LoraCacheActor(settings_with(tmp_path, folder=file))
    assert (await actor.get(write_lora(tmp_path), "schnell")).origin == "download"
    await actor.close()


async def test_old_scratch_files_of_an_earlier_actor_are_deleted(tmp_path: Path) -> None:
    settings = settings_with(tmp_path)
    old, new = (tmp_path / "cache" / "incoming" / name for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    await LoraCacheActor(settings).close()
    assert [old.exists(), new.exists()] == [False, True]
