"""The LoRA cache shared by all replicas of a cluster: the Ray actor that fills it and the client that calls it.

The actor downloads, checks and puts each LoRA into the object store. It runs on a permanent node, because
Ray deletes objects when their owner dies. Replicas on one node share one copy.
"""

import asyncio
import hashlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from serve import __version__
from serve.aio import first_error_task_group
from serve.errors import EngineFailed, FetchFailed, InvalidLora, NotFound, ServiceError
from serve.lora.model_geometry import ModelGeometry
from serve.lora.reference import Reference, ResolvedLora
from serve.lora.uploaded_file import ContentMissing, UploadedFile, upload_of, with_content
from serve.settings import Settings, cache_folder, read_secrets

if TYPE_CHECKING:
    from serve.lora.weights import Block

NAMESPACE = "flux-serve"
IDLE_TIMEOUT_S = 300.0
"""The actor exits after this long without a call: its service was deleted, or replaced by one with other settings."""
HEARTBEAT_PERIOD_S = 60.0
ATTEMPTS = 5
BACKOFF_S = 0.2
MAX_CONCURRENCY = 10_000
CONCURRENT_SENDS = 2
"""Each upload that is being sent to the cache takes its size of the object store."""

BlockRef = tuple["ray.ObjectRef[Block]"]
"""Refers to a block in the object store. A tuple, because Ray resolves references that are passed as arguments."""

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class LoraCacheActor:
    """Resolves references to LoRAs in the object store. Exits after `idle_timeout_s` without a call."""

    def __init__(self, settings: Settings, idle_timeout_s: float = IDLE_TIMEOUT_S) -> None:
        # Imported here, because the process that only creates the actor does not need torch.
        from serve.lora.cache_manager import LoraCacheManager
        from serve.lora.disk_cache import DiskCache
        from serve.lora.download import create_http_client
        from serve.lora.loader import LoraLoader

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
        return await self._manager.get(reference, await self._geometry(model), lost_handle_ids)

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


class LoraCacheClient:
    """Calls the LoRA cache of one application, and starts it if necessary.

    The actor's name depends on the settings. An actor with other settings is not used, and exits when it is idle.
    `upload_path` returns the path of an uploaded file by its id, or raises `NotFound`.
    """

    def __init__(self, settings: Settings, application: str, upload_path: Callable[[str], Awaitable[Path]]) -> None:
        self._settings = settings
        self._upload_path = upload_path
        self._send_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By key of the reference."""
        self._sends = asyncio.Semaphore(CONCURRENT_SENDS)
        self._actor_name = f"{application}-loras-{_fingerprint(settings)}"
        self._connect_lock = asyncio.Lock()
        self._actor: ActorHandle[Any] | None = None

    async def get(
        self, references: Mapping[str, Reference], pool: str, lost_handle_ids: Collection[str] = ()
    ) -> dict[str, ResolvedLora[Any]]:
        """Resolves `references`, by the inputs that name them, for the model of `pool`. The result has the same keys.

        `lost` are the ids of handles whose blocks cannot be read any more. Raises the first `FetchFailed` or
        `InvalidLora`, which names the input, and `EngineFailed` if there is no cache.
        """
        model = self._settings.pools[pool].model
        async with first_error_task_group() as group:
            tasks = {
                field: group.create_task(self._get_one(field, reference, model, lost_handle_ids))
                for field, reference in references.items()
            }
        return {field: task.result() for field, task in tasks.items()}

    async def keep_alive(self) -> None:
        """Sends heartbeats to the cache until cancelled."""
        while True:
            try:
                await self._call(lambda actor: actor.heartbeat.remote())
            except ServiceError:
                log.exception("LoRA cache is not available")
            await asyncio.sleep(HEARTBEAT_PERIOD_S)

    async def _get_one(self, field: str, reference: Reference, model: str, lost: Collection[str]) -> ResolvedLora[Any]:
        try:
            return await self._resolve(reference, model, tuple(lost))
        except (FetchFailed, InvalidLora) as error:
            raise type(error)(error.what, error.why, field) from None
        except NotFound as error:
            raise FetchFailed(reference.display_name, str(error), field) from None

    async def _resolve(self, reference: Reference, *arguments: Any) -> ResolvedLora[Any]:
        """Calls `LoraCacheActor.get`. Sends the content of an upload if the cache needs it, once for all requests."""
        try:
            return await self._call(lambda actor: actor.get.remote(reference, *arguments))
        except ContentMissing:
            upload = upload_of(reference)
            if upload is None:
                raise
        async with self._send_locks.setdefault(reference.key, asyncio.Lock()):
            try:
                return await self._call(lambda actor: actor.get.remote(reference, *arguments))
            except ContentMissing:
                return await self._send(upload, reference, *arguments)

    async def _send(self, upload: UploadedFile, reference: Reference, *arguments: Any) -> ResolvedLora[Any]:
        """Calls `LoraCacheActor.get` with the content of `upload`."""
        async with self._sends:
            path = await self._upload_path(upload.file_id)
            content = await asyncio.to_thread(_put_file, path, self._settings.lora.fetch.max_bytes, upload.display_name)
            return await self._call(lambda actor: actor.get.remote(reference, *arguments, content))

    async def _call(self, method: Callable[[Any], Awaitable[Result]]) -> Result:
        """Calls the actor, or a new one if it dies."""
        for attempt in range(ATTEMPTS):
            try:
                return await method(await self._connect())
            except RayTaskError as error:
                # The message of Ray's wrapper is a traceback with addresses; `cause` is what the actor raised.
                if isinstance(error.cause, ServiceError | ContentMissing):
                    raise error.cause from None
                log.error("LoRA cache failed: %s", error)
                raise EngineFailed("the LoRA cache failed; the operator's log has the cause") from None
            except (RayActorError, ValueError) as error:
                # ValueError: if two clients create the actor at once, one of them may not find it.
                log.warning("LoRA cache lost: %s", type(error).__name__)
                self._actor = None
                await asyncio.sleep(BACKOFF_S * 2**attempt)
        raise EngineFailed("the LoRA cache is not available; the operator's log has the cause")

    async def _connect(self) -> "ActorHandle[Any]":
        async with self._connect_lock:
            if self._actor is None:
                self._actor = await self._start()
        return self._actor

    async def _start(self) -> "ActorHandle[Any]":
        """A running actor. Raises `EngineFailed` if it does not start, for example if no node has its resources."""
        timeout_s = self._settings.lora.cache.start_timeout_s
        actor = await asyncio.to_thread(self._get_or_create_actor)
        try:
            async with asyncio.timeout(timeout_s):
                await actor.heartbeat.remote()
        except TimeoutError:
            log.error("LoRA cache did not start within %g s: check that a node has lora.cache.resources", timeout_s)
            raise EngineFailed("the LoRA cache did not start; the operator's log has the cause") from None
        return actor

    def _get_or_create_actor(self) -> "ActorHandle[Any]":
        actor_class = ray.remote(LoraCacheActor).options(
            name=self._actor_name,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=MAX_CONCURRENCY,
            num_cpus=0,
            resources=self._settings.lora.cache.resources,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}},
        )
        return actor_class.remote(self._settings)


def _put_file(path: Path, max_bytes: int, display_name: str) -> "ray.ObjectRef[Any]":
    """Copies a file to the object store. Raises `NotFound`, and `FetchFailed` if it is larger than `max_bytes`."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > max_bytes:
            raise FetchFailed(display_name, f"it has more than {max_bytes} bytes")
        # An empty file cannot be mapped.
        content = np.memmap(path, np.uint8, "r") if size_bytes else np.empty(0, np.uint8)
    except FileNotFoundError:
        raise NotFound("the uploaded file was removed; upload it again") from None
    return ray.put(np.asarray(content))


def _fingerprint(settings: Settings) -> str:
    """Differs for all settings that the cache depends on, and between versions of this project."""
    fields = settings.model_dump_json(include={"models", "lora", "cache_folder"})
    return hashlib.sha256(f"{__version__} {fields}".encode()).hexdigest()[:12]
