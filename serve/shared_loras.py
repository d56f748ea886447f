"""The cluster's LoRA cache as the ingress sees it: references in, weights at hand out, over a Ray actor.

Makes the actor where there is none, and another one where it died; turns what Ray raises into our errors. Knows nothing
of HTTP, and nothing of what a LoRA is.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from serve import __version__
from serve.errors import EngineFailed, ServiceError
from serve.lora.brought import Brought
from serve.lora.reference import Reference
from serve.lora_cache import LoraCache
from serve.settings import Settings
from serve.together import together

NAMESPACE = "flux-serve"
ATTEMPTS = 5
BACK_OFF_S = 0.2
RENEW_EVERY_S = 60.0
MAX_CALLS = 10_000

Result = TypeVar("Result")
Call = Callable[[Any], Awaitable[Result]]

log = logging.getLogger(__name__)


class SharedLoras:
    """The cache of one application. One that runs with other settings is left to itself, and ends when unused."""

    def __init__(self, settings: Settings, application: str) -> None:
        self._settings = settings
        self._name = f"{application}-loras-{_fingerprint(settings)}"
        self._connecting = asyncio.Lock()
        self._cache: ActorHandle[Any] | None = None

    async def bring(
        self, references: Mapping[str, Reference], pool: str, lost: Collection[str] = ()
    ) -> dict[str, Brought[Any]]:
        """The LoRAs for the model of `pool`, by the names in `references`.

        `lost` has the numbers of copies that could not be read. Raises `FetchFailed` and
        `LoraRefused`, of the first that failed, and `EngineFailed` if there is no cache to be had.
        """
        model = self._settings.pools[pool].model
        async with together() as bringing:
            tasks = {
                name: bringing.create_task(self._bring(reference, model, lost))
                for name, reference in references.items()
            }
        return {name: task.result() for name, task in tasks.items()}

    async def stay(self) -> None:
        """Keeps the cache alive, from now on until it is cancelled."""
        while True:
            try:
                await self._ask(lambda cache: cache.renew.remote())
            except ServiceError:
                log.exception("there is no LoRA cache")
            await asyncio.sleep(RENEW_EVERY_S)

    async def _bring(self, reference: Reference, model: str, lost: Collection[str]) -> Brought[Any]:
        return await self._ask(lambda cache: cache.bring.remote(reference, model, tuple(lost)))

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
                await asyncio.sleep(BACK_OFF_S * 2**attempt)
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
                await cache.renew.remote()
        except TimeoutError:
            log.error("the LoRA cache did not start within %g s; is there a node with lora.cache.resources?", limit_s)
            raise EngineFailed("the LoRA cache did not start; the operator's log has the cause") from None
        return cache

    def _make(self) -> "ActorHandle[Any]":
        actor = ray.remote(LoraCache).options(
            name=self._name,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=MAX_CALLS,
            num_cpus=0,
            resources=self._settings.lora.cache.resources,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}},
        )
        return actor.remote(self._settings)


def _fingerprint(settings: Settings) -> str:
    """Changes with all that a cache was made with."""
    parts = settings.model_dump_json(include={"models", "lora", "cache_folder"})
    return hashlib.sha256(f"{__version__} {parts}".encode()).hexdigest()[:12]
