"""The Ray actor that resolves LoRAs for all replicas of a cluster.

It downloads and checks each LoRA and puts it into the object store. It runs on a permanent node, because Ray deletes
objects when their owner dies. Replicas on one node share one copy.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import ray

from serve import telemetry
from serve.lora.model_geometry import ModelGeometry
from serve.lora.reference import Reference
from serve.lora.resolved_lora import Origin, ResolvedLora
from serve.lora.uploaded_file import with_content
from serve.ray_logs import use_actor_log
from serve.ray_metrics import use_ray_metrics
from serve.settings import Settings, cache_folder, read_secrets

if TYPE_CHECKING:
    from serve.lora.weights import Block

IDLE_TIMEOUT_S = 300.0
"""The actor exits after this long without a call: its service was deleted, or replaced by one with other settings."""

BlockRef = tuple["ray.ObjectRef[Block]"]
"""Refers to a block in the object store. A tuple, because Ray resolves references that are passed as arguments."""

log = logging.getLogger(__name__)


class LoraCacheActor:
    """Resolves references to LoRAs in the object store. Exits after `idle_timeout_s` without a call."""

    def __init__(self, settings: Settings, idle_timeout_s: float = IDLE_TIMEOUT_S) -> None:
        # Imported here, because the process that only creates the actor does not need torch.
        from serve.lora.cache_manager import LoraCacheManager
        from serve.lora.disk_cache import DiskCache
        from serve.lora.download import create_http_client
        from serve.lora.loader import LoraLoader

        use_actor_log("loras", settings.log_format)
        use_ray_metrics()
        for tier in get_args(Origin):
            telemetry.LORA_REQUESTS.add(0, tier=tier)
        telemetry.LORA_DOWNLOAD_BYTES.add(0)
        secrets = read_secrets()
        self._settings = settings
        self._hf_token = secrets.hf_token.get_secret_value() if secrets.hf_token else None
        folder = settings.lora.cache.folder or cache_folder(settings) / "loras"
        scratch_folder = _prepare_scratch_folder(folder, max_age_s=2 * settings.lora.fetch.total_timeout_s)
        self._client = create_http_client(settings.lora)
        self._manager = LoraCacheManager(
            LoraLoader(settings.lora, secrets, self._client, scratch_folder),
            DiskCache(folder, settings.lora.cache.disk_bytes),
            lambda block: (ray.put(block),),
            settings.lora,
        )
        self._geometries: dict[str, ModelGeometry] = {}
        self._idle_timeout_s = idle_timeout_s
        self._last_call_s = time.monotonic()
        self._idle_watcher: asyncio.Task[None] | None = None

    async def get(
        self, reference: Reference, model: str, lost_handle_ids: Collection[str] = (), content: Any = None
    ) -> ResolvedLora[BlockRef]:
        """The LoRA for `model`, a key of `settings.models`. See `LoraCacheManager.get`.

        `content` is the array of bytes of an `UploadedFile`. Raises `ContentMissing` if it is needed and not given.
        """
        await self.heartbeat()
        if content is not None:
            reference = with_content(reference, memoryview(content))
        lora = await self._manager.get(reference, await self._geometry(model), lost_handle_ids)
        _record(lora)
        return lora

    async def heartbeat(self) -> None:
        """Restarts the idle timeout."""
        self._last_call_s = time.monotonic()
        if self._idle_watcher is None:
            self._idle_watcher = asyncio.create_task(self._exit_when_idle())

    async def close(self) -> None:
        """Cancels running loads and waits for pending disk writes. Needed only outside Ray, as in tests."""
        if self._idle_watcher is not None:
            self._idle_watcher.cancel()
        await self._manager.close()
        self._client.close()

    async def _geometry(self, model: str) -> ModelGeometry:
        from serve.engine.checkpoint_files import read_geometry

        if model not in self._geometries:
            model_settings = self._settings.models[model]
            self._geometries[model] = await asyncio.to_thread(read_geometry, model_settings, self._hf_token)
        return self._geometries[model]

    async def _exit_when_idle(self) -> None:
        while (remaining_s := self._last_call_s + self._idle_timeout_s - time.monotonic()) > 0:
            await asyncio.sleep(remaining_s)
        log.info("LoRA cache exits: no call for %g s", self._idle_timeout_s)
        ray.kill(ray.get_runtime_context().current_actor)


def _record(lora: ResolvedLora[BlockRef]) -> None:
    telemetry.LORA_REQUESTS.add(tier=lora.origin)
    if lora.origin == "download":
        telemetry.LORA_DOWNLOAD_BYTES.add(lora.fetched_bytes)
        telemetry.LORA_DOWNLOAD_SECONDS.observe(lora.fetch_s)


def _prepare_scratch_folder(cache_folder: Path, max_age_s: float) -> Path | None:
    """A folder for downloads on the disk of the cache, or None if it cannot be written to.

    Deletes what an earlier actor left there, if it is older than `max_age_s`, the longest that a load can take.
    """
    scratch_folder = cache_folder / "incoming"
    try:
        scratch_folder.mkdir(parents=True, exist_ok=True)
        for path in scratch_folder.iterdir():
            if time.time() - path.stat().st_mtime > max_age_s:
                shutil.rmtree(path, ignore_errors=True)
    except OSError:
        log.warning("LoRA cache folder %s is not writable: a restart loses all LoRAs", cache_folder, exc_info=True)
        return None
    return scratch_folder
