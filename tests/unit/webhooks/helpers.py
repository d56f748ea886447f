"""Predictions with webhooks, and a deliverer that sends to loopback addresses."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Connection, select

from serve.database.connection import Database
from serve.database.tables import is_open, webhook_deliveries
from serve.net.http_client import HttpClient
from serve.predictions.change_notifier import ChangeNotifier
from serve.predictions.prediction import Prediction
from serve.predictions.store import PredictionStore
from serve.predictions.webhook import WEBHOOK_EVENTS, Webhook, WebhookEvent
from serve.settings import WebhookSettings
from serve.webhooks import delivery_rows as rows
from serve.webhooks.deliverer import WebhookDeliverer
from serve.webhooks.sender import WebhookSender
from serve.webhooks.signing_secrets import SigningSecrets
from tests.fakes import FakeClock, prediction
from tests.local_server import EMPTY_TRUST_STORE

SETTINGS = WebhookSettings(allowed_hosts=("127.0.0.1",), total_timeout_s=5)


def with_webhook(prediction_id: str, url: str, *events: WebhookEvent, host: str = "receiver:80") -> Prediction:
    webhook = Webhook(url=url, host=host, events=events or WEBHOOK_EVENTS, api="replicate")
    return prediction(prediction_id).model_copy(update={"webhook": webhook})


def make_store(database: Database, clock: FakeClock, notifier: ChangeNotifier | None = None) -> PredictionStore:
    pool = prediction().plan.pool
    return PredictionStore(database, notifier or ChangeNotifier(database), {pool: 100}, clock.now)


async def render(webhook: Webhook, prediction: Prediction) -> Mapping[str, Any]:
    images = [output.index for output in prediction.outputs]
    return {"id": prediction.id, "status": prediction.status, "logs": prediction.logs, "output": images}


def make_deliverer(
    database: Database,
    store: PredictionStore,
    clock: FakeClock,
    settings: WebhookSettings = SETTINGS,
    monotonic: Callable[[], float] = time.monotonic,
) -> WebhookDeliverer:
    client = HttpClient(settings.http, tls=EMPTY_TRUST_STORE, settings_name="webhooks")
    sender = WebhookSender(client, SigningSecrets(database, clock.now), render, settings.total_timeout_s, clock.now)
    return WebhookDeliverer(settings, database, store, sender, clock.now, monotonic)


@asynccontextmanager
async def running(deliverer: WebhookDeliverer) -> AsyncGenerator[None, None]:
    """Runs a process that delivers webhooks; it stops at the end of the block."""
    task = asyncio.create_task(deliverer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await deliverer.aclose()


async def open_ids(database: Database) -> list[str]:
    """The predictions whose deliveries have not ended and are not dead."""
    query = select(webhook_deliveries.c.prediction_id).where(is_open)

    def work(connection: Connection) -> list[str]:
        return sorted(connection.execute(query).scalars())

    return await database.read(work)


async def attempts(database: Database, prediction_id: str) -> int:
    """The failed attempts to deliver the last event."""
    query = select(webhook_deliveries.c.attempts).where(webhook_deliveries.c.prediction_id == prediction_id)

    def work(connection: Connection) -> int:
        return int(connection.execute(query).scalar_one())

    return await database.read(work)


async def dead(database: Database) -> list[rows.DeadDelivery]:
    return await database.read(lambda connection: rows.read_dead(connection, 1000))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for a condition. Raises `TimeoutError` after 5 seconds."""
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.01)
