"""The one way in: the ASGI application with all faces behind one door, and the same predictions by Python handle.

Composes what one ingress process needs; Ray hands it the pools' handles. Decides nothing itself.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatus
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from serve.api import cog, output_files, replicate
from serve.api.auth import AuthMiddleware, check_bind_address
from serve.api.error_responses import ErrorMiddleware, http_exception
from serve.api.replicate import prediction_json
from serve.lora.parse import check_aliases
from serve.lora_cache import LoraCacheClient
from serve.media.output_store import OutputStore
from serve.net.url_fetcher import UrlFetcher
from serve.pool_client import PoolClient
from serve.predictions.input_images import InputImages
from serve.predictions.prediction import Prediction
from serve.predictions.request import resolve_version
from serve.predictions.runner import PredictionRunner
from serve.predictions.service import PredictionService
from serve.predictions.store import MemoryStore
from serve.settings import Settings, read_secrets

READY_POLL_S = 0.5
CLOSE_GRACE_S = 60.0
SWEEP_EVERY_S = 60.0


class Ingress:
    """Takes predictions once every pool is healthy; a pool that may have no replicas counts as healthy without one."""

    def __init__(self, settings: Settings, handles: Mapping[str, DeploymentHandle]) -> None:
        self._settings = settings
        self._token = read_secrets().api_token
        check_bind_address(
            _get_global_client().http_config.host, self._token is not None, settings.allow_unauthenticated
        )
        check_aliases(settings.lora)
        self._outputs = OutputStore(settings.outputs)
        self._fetcher = UrlFetcher(settings.fetch)
        pictures = InputImages(settings, self._fetcher)
        store = MemoryStore(settings.max_records, settings.record_max_age_s)
        pools = {name: PoolClient(name, handle) for name, handle in handles.items()}
        self._loras = LoraCacheClient(settings, serve.get_replica_context().app_name)
        runner = PredictionRunner(store, pools, pictures, self._loras, self._outputs)
        self._desk = PredictionService(settings, store, runner, pictures)
        self._pools = tuple(handles)
        self._opened = asyncio.Event()

    def __serve_build_asgi_app__(self) -> Starlette:
        shared = (self._desk, self._outputs, self._settings)
        return Starlette(
            routes=[
                *replicate.routes(*shared),
                *cog.routes(*shared),
                *output_files.routes(self._outputs, self._settings),
            ],
            middleware=[Middleware(ErrorMiddleware), Middleware(AuthMiddleware, token=self._token)],
            exception_handlers={HTTPException: http_exception},
            lifespan=self._open_and_close,
        )

    async def wait_until_open(self) -> None:
        """Returns when predictions are taken."""
        await self._opened.wait()

    async def predict(self, inputs: Mapping[str, Any], version: str | None = None) -> dict[str, Any]:
        """The prediction for `inputs` at its end, as `/v1` shows it; a caller who leaves cancels it.

        Raises `InvalidInput`, `PoolFull`, `NotReady` or `UnknownVersion` of `serve.errors`.
        """
        async with self._desk.create_attached(inputs, resolve_version(self._settings, version)) as prediction:
            return await self._body(await self._desk.wait(prediction.id))

    async def stream(
        self, inputs: Mapping[str, Any], version: str | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The prediction as it is accepted, and after every change to its end. Raises as `predict` does."""
        async with self._desk.create_attached(inputs, resolve_version(self._settings, version)) as prediction:
            async for state in self._desk.watch(prediction.id):
                yield await self._body(state)

    async def _body(self, prediction: Prediction) -> dict[str, Any]:
        return await prediction_json(prediction, self._outputs, self._settings)

    @asynccontextmanager
    async def _open_and_close(self, app: Starlette) -> AsyncGenerator[None, None]:
        chores = self._open_when_pools_are_healthy(), self._sweep(), self._keep_loras()
        keeping = [asyncio.create_task(work) for work in chores]
        yield
        for task in keeping:
            task.cancel()
        await self._desk.close(CLOSE_GRACE_S)
        await self._fetcher.aclose()
        await self._outputs.aclose()

    async def _open_when_pools_are_healthy(self) -> None:
        application = serve.get_replica_context().app_name
        while not await asyncio.to_thread(_are_healthy, application, self._pools):
            await asyncio.sleep(READY_POLL_S)
        self._desk.open()
        self._opened.set()

    async def _keep_loras(self) -> None:
        """Only once it is open: the cache then starts beside the first predictions, and not beside the models."""
        await self._opened.wait()
        await self._loras.keep_alive()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            await self._outputs.sweep()


def _are_healthy(application: str, pools: Sequence[str]) -> bool:
    """Whether every pool has the replicas that it is meant to have; none, where none is enough."""
    status = serve.status().applications.get(application)
    deployments = status.deployments if status else {}
    return all(name in deployments and deployments[name].status == DeploymentStatus.HEALTHY for name in pools)
