"""The LoRA cache shared by all replicas of a cluster: the Ray actor that fills it and the client that calls it.

The actor downloads, checks and puts each LoRA into the object store. It runs on a node that is always there, because an
object dies with its owner. Replicas on one node share one copy.
"""

import asyncio
import hashlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from serve import __version__
from serve.aio import first_error_task_group
from serve.errors import EngineFailed, ServiceError
from serve.lora.model_geometry import ModelGeometry
from serve.lora.reference import Reference, ResolvedLora
from serve.settings import Settings, cache_folder, read_secrets

if TYPE_CHECKING:
    from serve.lora.weights import Block

IDLE_TIMEOUT_S = 300.0
"""An actor that nobody has asked for this long ends itself: its service was taken away, or replaced by a newer one."""

BlockRef = tuple["ray.ObjectRef[Block]"]
"""Where a block lies. A tuple, since Ray replaces references that are arguments themselves by what they refer to."""

log = logging.getLogger(__name__)


class LoraCacheActor:
    def __init__(self, settings: Settings, lease_s: float = IDLE_TIMEOUT_S) -> None:
        # Imported where it runs: who only makes the actor does without torch.
        from serve.lora.cache_manager import LoraCacheManager
        from serve.lora.disk_cache import DiskCache
        from serve.lora.loader import LoraLoader

        secrets = read_secrets()
        self._settings = settings
        self._hf_token = secrets.hf_token.get_secret_value() if secrets.hf_token else None
        folder = settings.lora.cache.folder or cache_folder(settings) / "loras"
        self._loader = LoraLoader(settings.lora, secrets, _scratch(folder, 2 * settings.lora.fetch.total_timeout_s))
        self._library = LoraCacheManager(
            self._loader,
            DiskCache(folder, settings.lora.cache.disk_bytes),
            lambda block: (ray.put(block),),
            settings.lora,
        )
        self._geometries: dict[str, ModelGeometry] = {}
        self._lease_s = lease_s
        self._renewed_s = time.monotonic()
        self._watching: asyncio.Task[None] | None = None

    async def get(self, reference: Reference, model: str, lost: Collection[str] = ()) -> ResolvedLora[BlockRef]:
        """The LoRA for the model of that row of the settings, as `Library.bring` says."""
        await self.heartbeat()
        return await self._library.get(reference, await self._geometry(model), lost)

    async def heartbeat(self) -> None:
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

    async def _geometry(self, model: str) -> ModelGeometry:
        from serve.engine.checkpoint_files import read_geometry

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


NAMESPACE = "flux-serve"
ATTEMPTS = 5
BACKOFF_S = 0.2
HEARTBEAT_PERIOD_S = 60.0
MAX_CONCURRENCY = 10_000

Result = TypeVar("Result")
Call = Callable[[Any], Awaitable[Result]]

log = logging.getLogger(__name__)


class LoraCacheClient:
    """The cache of one application. One that runs with other settings is left to itself, and ends when unused."""

    def __init__(self, settings: Settings, application: str) -> None:
        self._settings = settings
        self._name = f"{application}-loras-{_fingerprint(settings)}"
        self._connecting = asyncio.Lock()
        self._cache: ActorHandle[Any] | None = None

    async def get(
        self, references: Mapping[str, Reference], pool: str, lost: Collection[str] = ()
    ) -> dict[str, ResolvedLora[Any]]:
        """The LoRAs for the model of `pool`, by the names in `references`.

        `lost` has the numbers of copies that could not be read. Raises `FetchFailed` and
        `InvalidLora`, of the first that failed, and `EngineFailed` if there is no cache to be had.
        """
        model = self._settings.pools[pool].model
        async with first_error_task_group() as bringing:
            tasks = {
                name: bringing.create_task(self._bring(reference, model, lost))
                for name, reference in references.items()
            }
        return {name: task.result() for name, task in tasks.items()}

    async def keep_alive(self) -> None:
        """Keeps the cache alive, from now on until it is cancelled."""
        while True:
            try:
                await self._ask(lambda cache: cache.heartbeat.remote())
            except ServiceError:
                log.exception("there is no LoRA cache")
            await asyncio.sleep(HEARTBEAT_PERIOD_S)

    async def _bring(self, reference: Reference, model: str, lost: Collection[str]) -> ResolvedLora[Any]:
        return await self._ask(lambda cache: cache.get.remote(reference, model, tuple(lost)))

    async def _ask(self, call: Call[Result]) -> Result:
        """The answer of the cache, of another one if it dies meanwhile."""
        for attempt in range(ATTEMPTS):
            try:
                return await call(await self._connected())
            except RayTaskError as error:
                # The text of Ray's wrapper is a traceback with addresses; its cause is what the cache raised.
                if isinstance(error.cause, ServiceError):
                    raise error.cause from None
                log.error("the LoRA cache failed: %s", error)
                raise EngineFailed("the LoRA cache failed; the operator's log has the cause") from None
            except (RayActorError, ValueError) as error:
                # ValueError: of two who make the actor at once, one may find it gone again.
                log.warning("the LoRA cache was lost: %s", type(error).__name__)
                self._cache = None
                await asyncio.sleep(BACKOFF_S * 2**attempt)
        raise EngineFailed("the LoRA cache is not available; the operator's log has the cause")

    async def _connected(self) -> "ActorHandle[Any]":
        async with self._connecting:
            if self._cache is None:
                self._cache = await self._connect()
        return self._cache

    async def _connect(self) -> "ActorHandle[Any]":
        """Raises EngineFailed if the cache does not start, as when no node has the resources it is to run with."""
        limit_s = self._settings.lora.cache.start_timeout_s
        cache = await asyncio.to_thread(self._make)
        try:
            async with asyncio.timeout(limit_s):
                await cache.heartbeat.remote()
        except TimeoutError:
            log.error("the LoRA cache did not start within %g s; is there a node with lora.cache.resources?", limit_s)
            raise EngineFailed("the LoRA cache did not start; the operator's log has the cause") from None
        return cache

    def _make(self) -> "ActorHandle[Any]":
        actor = ray.remote(LoraCacheActor).options(
            name=self._name,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=MAX_CONCURRENCY,
            num_cpus=0,
            resources=self._settings.lora.cache.resources,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}},
        )
        return actor.remote(self._settings)


def _fingerprint(settings: Settings) -> str:
    """Changes with all that a cache was made with."""
    parts = settings.model_dump_json(include={"models", "lora", "cache_folder"})
    return hashlib.sha256(f"{__version__} {parts}".encode()).hexdigest()[:12]
