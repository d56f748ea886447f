"""The LoRAs that all replicas of a cluster share. A plain class, which `serve.shared_loras` makes one Ray actor of.

Each LoRA is downloaded, checked and put into the object store here, by a process on a node that is always there: the
objects live as long as their owner, and a node that owns objects is never idle. Replicas on a node read one copy. Knows
no prediction.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from serve.lora.brought import Brought
from serve.lora.geometry import Geometry
from serve.lora.reference import Reference
from serve.settings import Settings, cache_folder, read_secrets

if TYPE_CHECKING:
    from serve.lora.packed import Block

LEASE_S = 300.0
"""An actor that nobody has asked for this long ends itself: its service was taken away, or replaced by a newer one."""

Shared = tuple["ray.ObjectRef[Block]"]
"""Where a block lies. A tuple, since Ray replaces references that are arguments themselves by what they refer to."""

log = logging.getLogger(__name__)


class LoraCache:
    def __init__(self, settings: Settings, lease_s: float = LEASE_S) -> None:
        # Imported where it runs: who only makes the actor does without torch.
        from serve.lora.library import Library
        from serve.lora.loading import Loader
        from serve.lora.shelf import Shelf

        secrets = read_secrets()
        self._settings = settings
        self._hf_token = secrets.hf_token.get_secret_value() if secrets.hf_token else None
        folder = settings.lora.cache.folder or cache_folder(settings) / "loras"
        self._loader = Loader(settings.lora, secrets, _scratch(folder, 2 * settings.lora.fetch.total_timeout_s))
        self._library = Library(
            self._loader,
            Shelf(folder, settings.lora.cache.disk_bytes),
            lambda block: (ray.put(block),),
            settings.lora,
        )
        self._geometries: dict[str, Geometry] = {}
        self._lease_s = lease_s
        self._renewed_s = time.monotonic()
        self._watching: asyncio.Task[None] | None = None

    async def bring(self, reference: Reference, model: str, lost: Collection[str] = ()) -> Brought[Shared]:
        """The LoRA for the model of that row of the settings, as `Library.bring` says."""
        await self.renew()
        return await self._library.bring(reference, await self._geometry(model), lost)

    async def renew(self) -> None:
        """Somebody may still need this. Returns when there is something to ask."""
        self._renewed_s = time.monotonic()
        if self._watching is None:
            self._watching = asyncio.create_task(self._leave_when_forgotten())

    async def close(self) -> None:
        """Ends what is in work, and returns when what was brought is on the disk: for who runs it without Ray."""
        if self._watching is not None:
            self._watching.cancel()
        await self._library.close()
        self._loader.close()

    async def _geometry(self, model: str) -> Geometry:
        from serve.engine.checkpoint import read_geometry

        if model not in self._geometries:
            row = self._settings.models[model]
            self._geometries[model] = await asyncio.to_thread(read_geometry, row, self._hf_token)
        return self._geometries[model]

    async def _leave_when_forgotten(self) -> None:
        while (left_s := self._renewed_s + self._lease_s - time.monotonic()) > 0:
            await asyncio.sleep(left_s)
        log.info("nobody has asked for LoRAs for %g s, this cache ends", self._lease_s)
        ray.kill(ray.get_runtime_context().current_actor)


def _scratch(folder: Path, work_s: float) -> Path | None:
    """Downloads lie on the disk on which they will stay, which has room for them; None where it cannot be written.

    What a cache left there that died is removed: whatever is older than any work may take.
    """
    scratch = folder / "incoming"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        for left in scratch.iterdir():
            if time.time() - left.stat().st_mtime > work_s:
                shutil.rmtree(left, ignore_errors=True)
    except OSError:
        log.warning("LoRAs cannot be kept in %s, each restart will bring them again", folder, exc_info=True)
        return None
    return scratch
