"""The ingress deployment: serves the HTTP APIs and the Python handle.

It creates all objects of its process.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatus
from starlette.applications import Starlette

from serve.api import cog, deployments, discovery, files, models, openai, output_files, playground, probes, replicate
from serve.api.application import http_application
from serve.api.auth import check_bind_address
from serve.api.replicate import prediction_json
from serve.database.connection import Database
from serve.database.signing_keys import signing_key
from serve.database.task_lease import TaskLease
from serve.errors import DatabaseUnavailable, StorageUnavailable
from serve.logs import use_replica_log
from serve.lora.parse_reference import check_aliases
from serve.lora_cache_client import LoraCacheClient
from serve.media.file_store import FileStore
from serve.media.links import LinkSigner
from serve.media.object_store import ObjectStore
from serve.media.output_store import OutputStore
from serve.net.http_client import HttpClient
from serve.net.url_fetcher import UrlFetcher
from serve.pool_client import PoolClient
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.input_images import InputImages
from serve.predictions.input_store import InputStore
from serve.predictions.own_files import OwnFiles, OwnFilesFirst
from serve.predictions.prediction import Prediction
from serve.predictions.request import check_served_models, resolve_version
from serve.predictions.retention import Retention
from serve.predictions.runner import PredictionRunner
from serve.predictions.service import PredictionService
from serve.predictions.store import PredictionStore
from serve.settings import Settings, read_secrets, state_folder, unshared_state

READY_POLL_S = 0.5
SHUTDOWN_GRACE_S = 60.0
SWEEP_PERIOD_S = 30.0
SWEEP_LEASE_S = 120.0
"""Longer than one batch of deletions takes, and than the time between two sweeps."""

log = logging.getLogger(__name__)


class Ingress:
    """Accepts predictions once every pool is healthy; a pool that may scale to zero is healthy without replicas."""

    def __init__(self, settings: Settings, handles: Mapping[str, DeploymentHandle]) -> None:
        use_replica_log()
        self._settings = settings
        self._token = read_secrets().api_token
        http = _get_global_client().http_config
        check_bind_address(http.host, self._token is not None, settings.allow_unauthenticated)
        check_aliases(settings.lora)
        check_served_models(settings)
        folder = state_folder(settings, http.port)
        self._database = Database(settings.database_url or f"sqlite:///{folder / 'predictions.db'}")
        self._stored = ObjectStore(settings.storage_url or folder.absolute().as_uri())
        self._links = LinkSigner(lambda: signing_key(self._database, "links"), settings.outputs.link_max_age_s)
        self._outputs = OutputStore(settings.outputs, self._stored, self._links)
        self._files = FileStore(settings.files, self._database, self._stored)
        own_files = OwnFiles(self._files, self._outputs, settings.outputs.public_url)
        self._http_client = HttpClient(settings.fetch)
        fetcher = OwnFilesFirst(own_files, UrlFetcher(settings.fetch, self._http_client), settings.fetch.max_bytes)
        input_images = InputImages(settings, fetcher)
        self._notifier = ChangeNotifier(self._database)
        limits = {name: pool.max_in_flight for name, pool in settings.pools.items()}
        store = PredictionStore(self._database, self._notifier, limits)
        input_store = InputStore(self._stored)
        self._sweeping = TaskLease(self._database, "sweep", SWEEP_LEASE_S)
        self._retention = Retention(settings, self._database, self._sweeping, self._outputs, input_store)
        pools = {name: PoolClient(name, handle) for name, handle in handles.items()}
        self._lora_cache = LoraCacheClient(settings, serve.get_replica_context().app_name, self._files.local_copy)
        runner = PredictionRunner(store, pools, input_images, self._lora_cache, self._outputs)
        self._predictions = PredictionService(settings, store, runner, input_images, input_store, own_files)
        self._pools = tuple(handles)
        self._ready = asyncio.Event()

    def __serve_build_asgi_app__(self) -> Starlette:
        shared = (self._predictions, self._outputs, self._settings)
        routes = [
            *replicate.routes(self._predictions, self._outputs, self._links, self._settings),
            *files.routes(self._files, self._stored, self._links, self._settings),
            *models.routes(self._predictions, self._settings),
            *openai.routes(*shared),
            *deployments.routes(self._predictions, self._settings),
            *discovery.routes(self._predictions, self._settings),
            # Before the Cog API, which has the path `/` too.
            *playground.routes(self._settings),
            *cog.routes(*shared),
            *probes.routes(self._predictions),
            *output_files.routes(self._outputs, self._stored, self._links, self._settings),
        ]
        return http_application(routes, self._settings, self._token, self._lifespan)

    async def wait_until_open(self) -> None:
        """Returns when predictions are accepted."""
        await self._ready.wait()

    async def predict(self, inputs: Mapping[str, Any], version: str | None = None) -> dict[str, Any]:
        """Runs a prediction and returns it as `/v1` shows it. Cancelling the call cancels the prediction.

        Raises `InvalidInput`, `PoolFull`, `NotReady` or `UnknownVersion` of `serve.errors`.
        """
        served = resolve_version(self._settings, version)
        async with self._predictions.create_attached(served.rename_inputs(inputs), served) as prediction:
            return await self._to_json(await self._predictions.wait(prediction.id))

    async def stream(
        self, inputs: Mapping[str, Any], version: str | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Runs a prediction and yields it when it is accepted and after every change. Raises as `predict` does."""
        served = resolve_version(self._settings, version)
        async with self._predictions.create_attached(served.rename_inputs(inputs), served) as prediction:
            async for state in self._predictions.watch(prediction.id):
                yield await self._to_json(state)

    async def _to_json(self, prediction: Prediction) -> dict[str, Any]:
        return await prediction_json(prediction, self._outputs, self._links, self._settings)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncGenerator[None, None]:
        # The LoRA cache starts while the models are loaded, so that the first LoRA does not wait for it.
        background = (
            self._start(),
            self._notifier.run(),
            self._predictions.keep_leases(),
            self._sweep_stores(),
            self._lora_cache.keep_alive(),
        )
        tasks = [asyncio.create_task(work) for work in background]
        yield
        for task in tasks:
            task.cancel()
        await self._predictions.close(SHUTDOWN_GRACE_S)
        await self._files.aclose()
        await self._database.aclose()
        self._http_client.close()

    async def _start(self) -> None:
        while True:
            try:
                await self._database.migrate()
                break
            except DatabaseUnavailable as error:
                log.warning("the service starts when the database can be reached: %s", error.cause)
            await asyncio.sleep(READY_POLL_S)
        application = serve.get_replica_context().app_name
        while not await asyncio.to_thread(_are_healthy, application, self._pools):
            await asyncio.sleep(READY_POLL_S)
        self._predictions.open()
        self._ready.set()
        for problem in unshared_state(self._settings, await asyncio.to_thread(_count_nodes, application)):
            log.error("%s", problem)

    async def _sweep_stores(self) -> None:
        """Removes old predictions and files, in one of the ingress replicas."""
        while True:
            await asyncio.sleep(SWEEP_PERIOD_S)
            try:
                await self._retention.sweep()
                if await self._sweeping.take():
                    await self._files.sweep()
            except (DatabaseUnavailable, StorageUnavailable) as error:
                log.warning("old predictions and files are removed later: %s", type(error).__name__)
            except Exception:
                log.exception("old predictions and files are removed later")


def _are_healthy(application: str, pools: Sequence[str]) -> bool:
    """Whether every pool has its target number of replicas, which may be zero."""
    status = serve.status().applications.get(application)
    deployments = status.deployments if status else {}
    return all(name in deployments and deployments[name].status == DeploymentStatus.HEALTHY for name in pools)


def _count_nodes(application: str) -> int:
    """The number of nodes that run replicas of the ingress."""
    name = serve.get_replica_context().deployment
    deployments = _get_global_client().get_serve_details()["applications"].get(application, {}).get("deployments", {})
    replicas = deployments.get(name, {}).get("replicas", [])
    return len({replica.get("node_id") for replica in replicas})
