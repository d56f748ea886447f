"""The client of the LoRA cache, which starts the cache's actor if necessary."""

import asyncio
import contextvars
import hashlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from serve import __version__
from serve.aio import first_error_task_group
from serve.errors import EngineFailed, FetchFailed, InvalidLora, NotFound, ServiceError
from serve.lora.reference import Reference
from serve.lora.resolved_lora import ResolvedLora
from serve.lora.uploaded_file import ContentMissing, UploadedFile, upload_of
from serve.lora_cache_actor import LoraCacheActor
from serve.settings import Settings

NAMESPACE = "flux-serve"
HEARTBEAT_PERIOD_S = 60.0
ATTEMPTS = 5
BACKOFF_S = 0.2
CHECK_PERIOD_S = 5.0
"""During a call, which may take as long as a download, the cache is asked for a sign of life this often."""
CHECK_TIMEOUT_S = 20.0
"""A cache that gives no sign of life for this long has hung."""
MAX_HANGS = 2
"""A call fails if this many caches have hung."""
MAX_CONCURRENCY = 10_000
CONCURRENT_SENDS = 2
"""Each upload that is being sent to the cache takes its size of the object store."""

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class CacheHung(Exception):
    """The cache gives no sign of life."""


class LoraCacheClient:
    """Calls the LoRA cache of one application, and starts it if necessary.

    The actor's name depends on the settings. An actor with other settings is not used, and exits when it is idle.
    `local_copy` yields a local file with the content of an uploaded file by its id, or raises `NotFound`.
    """

    def __init__(
        self, settings: Settings, application: str, local_copy: Callable[[str], AbstractAsyncContextManager[Path]]
    ) -> None:
        self._settings = settings
        self._local_copy = local_copy
        self._send_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By key of the reference."""
        self._sends = asyncio.Semaphore(CONCURRENT_SENDS)
        self._actor_name = f"{application}-loras-{_fingerprint(settings)}"
        self._starting: asyncio.Task[ActorHandle[Any]] | None = None
        self._check_lock = asyncio.Lock()
        self._checked_s = -math.inf
        self._actor: ActorHandle[Any] | None = None
        self._hung: ActorHandle[Any] | None = None
        """The last one that was killed because it had hung."""

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
            max_bytes = self._settings.lora.fetch.max_bytes
            async with self._local_copy(upload.file_id) as path:
                content = await asyncio.to_thread(_put_file, path, max_bytes, upload.display_name)
            return await self._call(lambda actor: actor.get.remote(reference, *arguments, content))

    async def _call(self, method: Callable[[Any], Awaitable[Result]]) -> Result:
        """Calls the actor, or a new one if it dies or hangs."""
        hangs = 0
        for attempt in range(ATTEMPTS):
            try:
                return await self._answer(await self._connect(), method)
            except RayTaskError as error:
                # The message of Ray's wrapper is a traceback with addresses; `cause` is what the actor raised.
                if isinstance(error.cause, ServiceError | ContentMissing):
                    raise error.cause from None
                log.error("LoRA cache failed: %s", error)
                raise EngineFailed("the LoRA cache failed; the operator's log has the cause") from None
            except CacheHung:
                hangs += 1
                if hangs == MAX_HANGS:
                    raise EngineFailed("the LoRA cache does not answer; try again later") from None
            except (RayActorError, ValueError) as error:
                # ValueError: if two clients create the actor at once, one of them may not find it.
                log.warning("LoRA cache lost: %s", type(error).__name__)
                self._actor = None
                await asyncio.sleep(BACKOFF_S * 2**attempt)
        raise EngineFailed("the LoRA cache is not available; the operator's log has the cause")

    async def _answer(self, actor: "ActorHandle[Any]", method: Callable[[Any], Awaitable[Result]]) -> Result:
        """The result of a call, for which there is no limit as long as the actor lives. Raises `CacheHung`."""
        call = asyncio.ensure_future(method(actor))
        try:
            while not call.done():
                await asyncio.wait({call}, timeout=CHECK_PERIOD_S)
                if not call.done():
                    await self._check(actor)
            return call.result()
        finally:
            call.cancel()

    async def _check(self, actor: "ActorHandle[Any]") -> None:
        """Asks for a sign of life, once for all calls. Without one, kills the actor and raises `CacheHung`."""
        async with self._check_lock:
            if actor is self._hung:
                raise CacheHung
            if time.monotonic() - self._checked_s < CHECK_PERIOD_S:
                return
            try:
                async with asyncio.timeout(CHECK_TIMEOUT_S):
                    await actor.heartbeat.remote()
            except TimeoutError:
                log.error("LoRA cache hung: no sign of life for %g s; another one starts", CHECK_TIMEOUT_S)
                self._actor, self._hung = None, actor
                await asyncio.to_thread(self._kill, actor)
                raise CacheHung from None
            self._checked_s = time.monotonic()

    async def _connect(self) -> "ActorHandle[Any]":
        """The actor, which starts once for all calls."""
        if self._actor is not None:
            return self._actor
        if self._starting is None:
            # A call may be cancelled, and Ray cancels everything that was called from the context of its request.
            self._starting = asyncio.get_running_loop().create_task(self._start(), context=contextvars.Context())
            self._starting.add_done_callback(self._on_started)
        return await asyncio.shield(self._starting)

    def _on_started(self, starting: "asyncio.Task[ActorHandle[Any]]") -> None:
        self._starting = None
        if not starting.cancelled() and starting.exception() is None:
            self._actor = starting.result()

    async def _start(self) -> "ActorHandle[Any]":
        """A running actor. Raises `EngineFailed` if it does not start, for example if no node has its resources."""
        timeout_s = self._settings.lora.cache.start_timeout_s
        actor = await asyncio.to_thread(self._get_or_create_actor)
        try:
            async with asyncio.timeout(timeout_s):
                await actor.heartbeat.remote()
        except TimeoutError:
            log.error("LoRA cache did not start within %g s: check that a node has lora.cache.resources", timeout_s)
            # It may be an older one that has hung.
            await asyncio.to_thread(self._kill, actor)
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

    def _kill(self, actor: "ActorHandle[Any]") -> None:
        ray.kill(actor)


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
