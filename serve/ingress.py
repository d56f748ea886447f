"""The one way in: the ASGI application with all faces behind one door, and the same predictions by Python handle.

Composes what one ingress process needs; Ray hands it the pools' handles. Decides nothing itself.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus
from starlette.applications import Starlette

from serve.api import cog, files, replicate
from serve.api.door import Door, refuse_open_door
from serve.api.problem import unrouted
from serve.api.replicate import prediction_body
from serve.media.fetch import Fetcher
from serve.media.outputs import Outputs
from serve.pool import HandlePool
from serve.predictions.desk import Desk
from serve.predictions.pictures import Pictures
from serve.predictions.record import Prediction
from serve.predictions.runner import Runner
from serve.predictions.store import MemoryStore
from serve.predictions.versions import served_version
from serve.settings import Settings, read_secrets

log = logging.getLogger("ray.serve")

READY_POLL_S = 0.5
CLOSE_GRACE_S = 60.0


class Ingress:
    """Takes predictions once every pool is healthy; a pool that may have no replicas counts as healthy without one."""

    def __init__(self, settings: Settings, handles: Mapping[str, DeploymentHandle]) -> None:
        self._settings = settings
        self._token = read_secrets().api_token
        refuse_open_door(_get_global_client().http_config.host, self._token is not None, settings.open_without_token)
        self._outputs = Outputs(settings.outputs)
        self._fetcher = Fetcher(settings.fetch)
        pictures = Pictures(self._fetcher, settings)
        store = MemoryStore(settings.max_records, settings.record_max_age_s)
        pools = {name: HandlePool(name, handle) for name, handle in handles.items()}
        self._desk = Desk(settings, store, Runner(store, pools, pictures, self._outputs), pictures)
        self._opening = asyncio.get_running_loop().create_task(self._open_when_pools_are_ready())

    def __serve_build_asgi_app__(self) -> Starlette:
        routes = [face for room in (replicate, cog, files) for face in room.routes(self._desk, self._settings)]
        return Starlette(routes=routes)

    async def predict(self, inputs: Mapping[str, Any], version: str | None = None) -> dict[str, Any]:
        """The prediction for `inputs` at its end, as `/v1` shows it; a caller who leaves cancels it.

        Raises `InvalidInput`, `PoolFull`, `NotReady` or `UnknownVersion` of `serve.errors`.
        """
        async with self._desk.attached(inputs, served_version(self._settings, version)) as prediction:
            return await self._body(await self._desk.wait(prediction.id))

    async def stream(
        self, inputs: Mapping[str, Any], version: str | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The prediction as it is accepted, and after every change to its end. Raises as `predict` does."""
        async with self._desk.attached(inputs, served_version(self._settings, version)) as prediction:
            async for state in self._desk.watch(prediction.id):
                yield await self._body(state)
