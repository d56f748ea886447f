"""Builds the HTTP application for tests, with a fake pool, fetcher and LoRA source."""

import shutil
import tempfile
import weakref
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from starlette.applications import Starlette

from serve.api import cog, deployments, discovery, files, models, openai, output_files, probes, replicate
from serve.api.application import http_application
from serve.media.file_store import FileStore
from serve.media.output_store import OutputStore
from serve.predictions.input_images import Fetcher, InputImages
from serve.predictions.own_files import OwnFiles, OwnFilesFirst
from serve.predictions.prediction import Prediction
from serve.predictions.request import ServedVersion, resolve_version
from serve.predictions.runner import LoraCache, Pool, PredictionRunner
from serve.predictions.service import PredictionService
from serve.predictions.store import MemoryStore
from serve.settings import Settings
from tests.asgi_server import listening
from tests.fakes import FakeFetcher, FakeLoraCache


@dataclass(frozen=True)
class AppUnderTest:
    """The application, the prediction service behind it, and the ids of all accepted predictions."""

    service: PredictionService
    served: ServedVersion
    app: Starlette
    prediction_ids: list[str]
    files: FileStore
    file_folder: Path
    """Folder of the contents of uploaded files."""

    @property
    def http(self) -> httpx.AsyncClient:
        """A client that calls the application in this process."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://service")

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[str, None]:
        """Runs the application on a loopback port and yields its base URL."""
        async with listening(self.app) as url:
            yield url

    async def create(self, inputs: Mapping[str, Any]) -> Prediction:
        return await self.service.create(inputs, self.served)


def make_app(
    pool: Pool,
    settings: Settings | None = None,
    fetcher: Fetcher | None = None,
    loras: LoraCache | None = None,
    opened: bool = True,
    token: str | None = None,
) -> AppUnderTest:
    """Builds the application with `pool` as every pool. Outputs and files are stored in a temporary folder."""
    prediction_ids: list[str] = []

    class RecordingStore(MemoryStore):
        async def create(self, prediction: Prediction) -> None:
            await super().create(prediction)
            prediction_ids.append(prediction.id)

    settings, folder = settings or Settings(), Path(tempfile.mkdtemp(prefix="flux-serve-test-"))
    store = RecordingStore(settings.max_records, settings.record_max_age_s)
    outputs = OutputStore(settings.outputs.model_copy(update={"folder": folder / "outputs"}))
    file_store = FileStore(settings.files.model_copy(update={"folder": folder / "files"}))
    own_files = OwnFiles(file_store, outputs, settings.outputs.public_url)
    fetcher = OwnFilesFirst(own_files, fetcher or FakeFetcher({}), settings.fetch.max_bytes)
    input_images = InputImages(settings, fetcher)
    runner = PredictionRunner(
        store, dict.fromkeys(settings.pools, pool), input_images, loras or FakeLoraCache(), outputs
    )
    service = PredictionService(settings, store, runner, input_images, own_files)
    if opened:
        service.open()
    routes = [
        *replicate.routes(service, outputs, settings),
        *files.routes(file_store, settings),
        *models.routes(service, settings),
        *openai.routes(service, outputs, settings),
        *deployments.routes(service, settings),
        *discovery.routes(service, settings),
        *cog.routes(service, outputs, settings),
        *probes.routes(service),
        *output_files.routes(outputs, settings),
    ]
    app = http_application(routes, settings, SecretStr(token) if token else None)
    app_under_test = AppUnderTest(
        service, resolve_version(settings, None), app, prediction_ids, file_store, folder / "files"
    )
    weakref.finalize(app, shutil.rmtree, folder)
    return app_under_test
