"""Builds the HTTP application for tests, with a fake pool, fetcher and LoRA source."""

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from sqlalchemy import NullPool, create_engine
from starlette.applications import Starlette

from serve.access.access_control import AccessControl
from serve.access.caller import ANONYMOUS, Caller
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
from serve.database.connection import Database
from serve.database.signing_keys import signing_key
from serve.database.tables import metadata
from serve.media.file_store import FileStore
from serve.media.links import LinkSigner
from serve.media.object_store import ObjectStore
from serve.media.output_store import OutputStore
from serve.net.http_client import HttpClient
from serve.net.output_uploads import OutputUploads
from serve.net.presigned_urls import PresignedUrls
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.create_options import NO_OPTIONS, CreateOptions
from serve.predictions.idempotency import IdempotencyKey
from serve.predictions.input_images import Fetcher, InputImages
from serve.predictions.input_store import InputStore
from serve.predictions.own_files import OwnFiles, OwnFilesFirst
from serve.predictions.prediction import Prediction
from serve.predictions.request import ServedVersion, resolve_version
from serve.predictions.runner import LoraCache, Pool, PredictionRunner
from serve.predictions.service import PredictionService
from serve.predictions.store import PredictionStore
from serve.settings import Settings
from serve.webhooks.deliverer import WebhookDeliverer
from serve.webhooks.sender import WebhookSender
from serve.webhooks.signing_secrets import SigningSecrets
from tests.asgi_server import listening
from tests.fakes import FakeFetcher, FakeLoraCache
from tests.local_server import EMPTY_TRUST_STORE


class SqliteForTests(Database):
    """Has all tables."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}")
        metadata.create_all(create_engine(f"sqlite:///{path}", poolclass=NullPool))


@dataclass(frozen=True)
class AppUnderTest:
    """The application, the prediction service behind it, and the ids of all accepted predictions."""

    service: PredictionService
    served: ServedVersion
    app: Starlette
    prediction_ids: list[str]
    files: FileStore
    links: LinkSigner
    database: Database
    state: Path
    """The folder of records, outputs and files."""
    webhooks: WebhookDeliverer
    """Sends nothing unless its `run` is called."""
    shutdowns: list[None]
    """An entry for each request to stop the service."""

    @property
    def http(self) -> httpx.AsyncClient:
        """A client that calls the application in this process."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://service")

    @asynccontextmanager
    async def listening(self, listener: socket.socket | None = None) -> AsyncGenerator[str, None]:
        """Runs the application on a loopback port and yields its base URL."""
        async with listening(self.app, listener) as url:
            yield url

    async def create(self, inputs: Mapping[str, Any], options: CreateOptions = NO_OPTIONS) -> Prediction:
        return await self.service.create(inputs, self.served, options)


def make_app(
    pool: Pool,
    settings: Settings | None = None,
    fetcher: Fetcher | None = None,
    loras: LoraCache | None = None,
    opened: bool = True,
    token: str | None = None,
    state: Path | None = None,
) -> AppUnderTest:
    """Builds the application with `pool` as every pool.

    Records, outputs and files are stored in the folder `state`, which may be that of another application.
    """
    prediction_ids: list[str] = []

    class RecordingStore(PredictionStore):
        async def create(
            self,
            prediction: Prediction,
            attached: bool,
            caller: Caller = ANONYMOUS,
            idempotency: IdempotencyKey | None = None,
        ) -> Prediction:
            stored = await super().create(prediction, attached, caller, idempotency)
            if stored is prediction:
                prediction_ids.append(prediction.id)
            return stored

    settings, folder = settings or Settings(), state or Path(tempfile.mkdtemp(prefix="flux-serve-test-"))
    database = SqliteForTests(folder / "predictions.db")
    limits = {name: each.max_in_flight for name, each in settings.pools.items()}
    store = RecordingStore(database, ChangeNotifier(database), limits)
    stored = ObjectStore(folder.as_uri())
    links = LinkSigner(lambda: signing_key(database, "links"), settings.outputs.link_max_age_s)
    outputs = OutputStore(settings.outputs, stored, links)
    file_store = FileStore(settings.files, database, stored)
    own_files = OwnFiles(file_store, outputs, store, links, settings.outputs.public_url, PresignedUrls(settings.fetch))
    fetcher = OwnFilesFirst(own_files, fetcher or FakeFetcher({}), settings.fetch.max_bytes)
    input_images = InputImages(settings, fetcher)
    runner = PredictionRunner(
        store,
        dict.fromkeys(settings.pools, pool),
        input_images,
        loras or FakeLoraCache(),
        outputs,
        OutputUploads(HttpClient(settings.fetch, tls=EMPTY_TRUST_STORE)),
    )
    shutdowns: list[None] = []

    async def shut_down() -> None:
        shutdowns.append(None)

    input_store = InputStore(stored)
    service = PredictionService(settings, store, runner, input_images, input_store, own_files)
    if opened:
        service.open()
    secrets = SigningSecrets(database)
    client = HttpClient(settings.webhooks.http, tls=EMPTY_TRUST_STORE, settings_name="webhooks")
    render = webhooks.webhook_renderer(outputs, links, settings)
    sender = WebhookSender(client, secrets, render, settings.webhooks.total_timeout_s)
    deliverer = WebhookDeliverer(settings.webhooks, database, store, sender)
    routes = [
        *replicate.routes(service, outputs, links, settings),
        *files.routes(file_store, stored, links, settings),
        *models.routes(service, settings),
        *openai.routes(service, outputs, settings),
        *deployments.routes(service, settings),
        *discovery.routes(service, settings),
        *playground.routes(settings),
        *cog.routes(service, outputs, settings, shut_down),
        *webhooks.routes(secrets),
        *probes.routes(service),
        *output_files.routes(service, outputs, stored, links, settings),
    ]
    access = AccessControl(SecretStr(token), database, RequestCounter(database)) if token else None
    app = http_application(routes, settings, access)
    app_under_test = AppUnderTest(
        service,
        resolve_version(settings, None),
        app,
        prediction_ids,
        file_store,
        links,
        database,
        folder,
        deliverer,
        shutdowns,
    )
    _open_apps.append(app_under_test)
    return app_under_test


@asynccontextmanager
async def delivering(app: AppUnderTest) -> AsyncGenerator[None, None]:
    """Delivers webhooks while the block runs."""
    task = asyncio.create_task(app.webhooks.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


_open_apps: list[AppUnderTest] = []


async def close_apps() -> None:
    """Closes the applications of a test, in its event loop, and removes their folders."""
    folders = {app.state for app in _open_apps}
    while _open_apps:
        app = _open_apps.pop()
        with suppress(TimeoutError):
            # Some fake pools never stop.
            async with asyncio.timeout(1):
                await app.webhooks.aclose()
                await app.service.close(grace_s=0)
        await app.files.aclose()
        await app.database.aclose()
    for folder in folders:
        shutil.rmtree(folder)
