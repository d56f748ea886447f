"""The ingress deployment: serves the HTTP APIs and the Python handle.

It creates all objects of its process.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatus
from starlette.applications import Starlette

from serve import tracing
from serve.access.access_control import AccessControl
from serve.access.request_counter import RequestCounter
from serve.api import (
    cog,
    deployments,
    discovery,
    files,
    models,
    openai,
    output_files,
    playground,
    probes,
    replicate,
    webhooks,
)
from serve.api.application import http_application
from serve.api.auth import check_bind_address
from serve.database.connection import Database
from serve.database.signing_keys import signing_key
from serve.database.task_lease import TaskLease
from serve.errors import DatabaseUnavailable, StorageUnavailable
from serve.handle_api import HandleApi
from serve.lora.parse_reference import check_aliases
from serve.lora_cache_client import LoraCacheClient
from serve.media.file_store import FileStore
from serve.media.links import LinkSigner
from serve.media.object_store import ObjectStore
from serve.media.output_store import OutputStore
from serve.net.http_client import HttpClient
from serve.net.output_uploads import OutputUploads
from serve.net.presigned_urls import PresignedUrls
from serve.net.url_fetcher import UrlFetcher
from serve.owner_death import own_reference
from serve.pool_client import PoolClient
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.input_images import InputImages
from serve.predictions.input_store import InputStore
from serve.predictions.own_files import OwnFiles, OwnFilesFirst
from serve.predictions.pool_metrics import PoolMetrics
from serve.predictions.request import check_served_models
from serve.predictions.retention import Retention
from serve.predictions.runner import PredictionRunner
from serve.predictions.service import PredictionService
from serve.predictions.store import PredictionStore
from serve.ray_logs import use_serve_log
from serve.ray_metrics import use_ray_metrics
from serve.settings import Settings, database_url, read_secrets, state_folder, unshared_state
from serve.webhooks.deliverer import WebhookDeliverer
from serve.webhooks.sender import WebhookSender
from serve.webhooks.signing_secrets import SigningSecrets

READY_POLL_S = 0.5
SHUTDOWN_GRACE_S = 60.0
HEALTHY = DeploymentStatus.HEALTHY
LAST_POLLS_S = 3.0
"""After the last prediction of a stopping service has ended, so that clients learn of it."""
SWEEP_PERIOD_S = 30.0
SWEEP_LEASE_S = 120.0
"""Longer than one batch of deletions takes, and than the time between two sweeps."""

log = logging.getLogger(__name__)


class Ingress(HandleApi):
    """Accepts predictions once every pool is healthy; a pool that may scale to zero is healthy without replicas."""

    def __init__(self, settings: Settings, handles: Mapping[str, DeploymentHandle]) -> None:
        use_serve_log(settings.log_format)
        use_ray_metrics()
        tracing.use_tracing()
        self._settings = settings
        token = read_secrets().api_token
        requires_token = token is not None or settings.require_token
        http = _get_global_client().http_config
        check_bind_address(http.host, requires_token, settings.allow_unauthenticated)
        check_aliases(settings.lora)
        check_served_models(settings)
        folder = state_folder(settings, http.port)
        self._database = Database(database_url(settings, http.port))
        self._request_counter = RequestCounter(self._database)
        self._access = AccessControl(token, self._database, self._request_counter) if requires_token else None
        self._stored = ObjectStore(settings.storage_url or folder.absolute().as_uri())
        self._links = LinkSigner(lambda: signing_key(self._database, "links"), settings.outputs.link_max_age_s)
        self._outputs = OutputStore(settings.outputs, self._stored, self._links)
        self._files = FileStore(settings.files, self._database, self._stored)
        self._notifier = ChangeNotifier(self._database)
        limits = {name: pool.max_in_flight for name, pool in settings.pools.items()}
        self._pool_metrics = PoolMetrics(self._database, limits)
        store = PredictionStore(self._database, self._notifier, limits)
        self._bucket_urls = PresignedUrls(settings.fetch)
        public_url = settings.outputs.public_url
        own_files = OwnFiles(self._files, self._outputs, store, self._links, public_url, self._bucket_urls)
        self._http_client = HttpClient(settings.fetch)
        fetcher = OwnFilesFirst(own_files, UrlFetcher(settings.fetch, self._http_client), settings.fetch.max_bytes)
        input_images = InputImages(settings, fetcher)
        input_store = InputStore(self._stored)
        self._sweeping = TaskLease(self._database, "sweep", SWEEP_LEASE_S)
        self._retention = Retention(settings, self._database, self._sweeping, self._outputs, input_store)
        owner = own_reference()
        pools = {name: PoolClient(name, handle, owner) for name, handle in handles.items()}
        self._lora_cache = LoraCacheClient(settings, serve.get_replica_context().app_name, self._files.local_copy)
        uploads = OutputUploads(self._http_client)
        runner = PredictionRunner(store, pools, input_images, self._lora_cache, self._outputs, uploads)
        predictions = PredictionService(settings, store, runner, input_images, input_store, own_files)
        super().__init__(predictions, self._outputs, self._links, settings)
        self._signing_secrets = SigningSecrets(self._database)
        webhook_client = HttpClient(settings.webhooks.http, settings_name="webhooks")
        render = webhooks.webhook_renderer(self._outputs, self._links, settings)
        sender = WebhookSender(webhook_client, self._signing_secrets, render, settings.webhooks.total_timeout_s)
        self._webhooks = WebhookDeliverer(settings.webhooks, self._database, store, sender)
        self._pools = tuple(handles)
        self._has_tables = asyncio.Event()
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
            *cog.routes(*shared, self._shut_down),
            *webhooks.routes(self._signing_secrets),
            *probes.routes(self._predictions),
            *output_files.routes(self._predictions, self._outputs, self._stored, self._links, self._settings),
        ]
        return http_application(routes, self._settings, self._access, self._lifespan)

    async def wait_until_open(self) -> None:
        """Returns when predictions are accepted."""
        await self._ready.wait()

    async def _close(self) -> None:
        """Rejects new predictions from now on. Returns when clients have had time to read the running ones."""
        is_busy = self._predictions.is_busy
        await self._predictions.close(SHUTDOWN_GRACE_S)
        if is_busy:
            await asyncio.sleep(LAST_POLLS_S)

    async def _shut_down(self) -> None:
        """Deletes the application when running predictions have ended."""
        await self._close()
        await asyncio.to_thread(serve.delete, serve.get_replica_context().app_name, _blocking=False)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncGenerator[None, None]:
        # The LoRA cache starts while the models are loaded, so that the first LoRA does not wait for it.
        background = (
            self._start(),
            self._notifier.run(),
            self._predictions.keep_leases(),
            self._request_counter.run(),
            self._sweep_stores(),
            self._lora_cache.keep_alive(),
            self._deliver_webhooks(),
            self._pool_metrics.run(),
        )
        tasks = [asyncio.create_task(work) for work in background]
        yield
        # Running predictions still need their leases, the changes by other processes, and their webhooks.
        await self._predictions.close(SHUTDOWN_GRACE_S)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._webhooks.aclose()
        await self._files.aclose()
        await self._database.aclose()
        self._http_client.close()
        self._bucket_urls.close()
        await asyncio.to_thread(tracing.shut_down)

    async def _start(self) -> None:
        while True:
            try:
                await self._database.migrate()
                break
            except DatabaseUnavailable as error:
                log.warning("the service starts when the database can be reached: %s", error.cause)
            await asyncio.sleep(READY_POLL_S)
        self._has_tables.set()
        application = serve.get_replica_context().app_name
        while (statuses := await asyncio.to_thread(_pool_statuses, application, self._pools)) != {HEALTHY}:
            if DeploymentStatus.DEPLOY_FAILED in statuses:
                self._predictions.fail_setup()
            await asyncio.sleep(READY_POLL_S)
        self._predictions.open()
        self._ready.set()
        for problem in unshared_state(self._settings, await asyncio.to_thread(_count_nodes, application)):
            log.error("%s", problem)

    async def _deliver_webhooks(self) -> None:
        await self._has_tables.wait()
        await self._webhooks.run()

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


def _pool_statuses(application: str, pools: Sequence[str]) -> set[DeploymentStatus | None]:
    """A pool is healthy if it has its target number of replicas, which may be zero."""
    status = serve.status().applications.get(application)
    deployments = status.deployments if status else {}
    return {deployments[name].status if name in deployments else None for name in pools}


def _count_nodes(application: str) -> int:
    """The number of nodes that run replicas of the ingress."""
    name = serve.get_replica_context().deployment
    deployments = _get_global_client().get_serve_details()["applications"].get(application, {}).get("deployments", {})
    replicas = deployments.get(name, {}).get("replicas", [])
    return len({replica.get("node_id") for replica in replicas})
