"""The rooms behind the faces put together as the service does it, with pools and an internet that a test chooses."""

import shutil
import tempfile
import weakref
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from serve.api import cog, output_files, replicate
from serve.api.error_responses import ErrorMiddleware, http_exception
from serve.media.output_store import OutputStore
from serve.predictions.input_images import Fetcher, InputImages
from serve.predictions.prediction import Prediction
from serve.predictions.request import ServedVersion, resolve_version
from serve.predictions.runner import LoraCache, Pool, PredictionRunner
from serve.predictions.service import PredictionService
from serve.predictions.store import MemoryStore
from serve.settings import Settings
from tests.fakes import FakeFetcher, FakeLoras
from tests.listening import listening


@dataclass(frozen=True)
class House:
    desk: PredictionService
    served: ServedVersion
    app: Starlette
    made: list[str]
    """The ids of all predictions that were accepted."""

    @property
    def http(self) -> httpx.AsyncClient:
        """A client of the faces, without a network between."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://service")

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[str, None]:
        """The faces on a port of loopback; the base URL."""
        async with listening(self.app) as url:
            yield url

    async def create(self, inputs: Mapping[str, Any]) -> Prediction:
        return await self.desk.create(inputs, self.served)


def house(
    pool: Pool,
    settings: Settings | None = None,
    fetcher: Fetcher | None = None,
    loras: LoraCache | None = None,
    opened: bool = True,
) -> House:
    """One pool stands for all rows of the settings. Outputs lie in a folder that goes with the house."""
    made: list[str] = []

    class NotingStore(MemoryStore):
        async def create(self, prediction: Prediction) -> None:
            await super().create(prediction)
            made.append(prediction.id)

    settings, folder = settings or Settings(), tempfile.mkdtemp(prefix="flux-serve-house-")
    store = NotingStore(settings.max_records, settings.record_max_age_s)
    pictures = InputImages(settings, fetcher or FakeFetcher({}))
    outputs = OutputStore(settings.outputs.model_copy(update={"folder": Path(folder)}))
    runner = PredictionRunner(store, dict.fromkeys(settings.pools, pool), pictures, loras or FakeLoras(), outputs)
    desk = PredictionService(settings, store, runner, pictures)
    if opened:
        desk.open()
    routes = [
        *replicate.routes(desk, outputs, settings),
        *cog.routes(desk, outputs, settings),
        *output_files.routes(outputs, settings),
    ]
    app = Starlette(
        routes=routes, middleware=[Middleware(ErrorMiddleware)], exception_handlers={HTTPException: http_exception}
    )
    home = House(desk, resolve_version(settings, None), app, made)
    weakref.finalize(home, shutil.rmtree, folder)
    return home
