"""The lifespan of the ingress, without Ray."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from ray import serve
from sqlalchemy import Connection, select
from starlette.applications import Starlette

from serve import ingress
from serve.database.connection import Database
from serve.database.tables import predictions
from serve.ingress import Ingress
from serve.predictions import service
from serve.settings import Settings, database_url
from tests.fakes import ONE_IMAGE, FakeLoraCache, FakePool

PORT = 1
CAT = {"input": {"prompt": "a cat", "num_inference_steps": 1}}


class LoraCache(FakeLoraCache):
    async def keep_alive(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> FakePool:
    """Every pool of the ingress."""
    pool = FakePool(ONE_IMAGE, may_start=False)
    client = SimpleNamespace(http_config=SimpleNamespace(host="127.0.0.1", port=PORT))
    monkeypatch.setattr(ingress, "use_serve_log", lambda *_: None)
    monkeypatch.setattr(ingress, "use_ray_metrics", lambda: None)
    monkeypatch.setattr(ingress, "own_reference", lambda: ())
    monkeypatch.setattr(ingress, "_get_global_client", lambda: client)
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="flux"))
    monkeypatch.setattr(ingress, "_pool_statuses", lambda *_: {ingress.HEALTHY})
    monkeypatch.setattr(ingress, "LoraCacheClient", lambda *_: LoraCache())
    monkeypatch.setattr(ingress, "PoolClient", lambda *_: pool)
    return pool


@asynccontextmanager
async def running(app: Starlette) -> AsyncGenerator[asyncio.Event, None]:
    """Runs the lifespan of an application. It ends when the yielded event is set, or with the block."""
    stop = asyncio.Event()

    async def run() -> None:
        async with app.router.lifespan_context(app):
            await stop.wait()

    task = asyncio.create_task(run())
    try:
        yield stop
    finally:
        stop.set()
        await task


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for a condition. Raises `TimeoutError` after 10 seconds."""
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_leases_are_kept_while_a_stopping_service_waits_for_predictions(
    pool: FakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "RENEW_PERIOD_S", 0.01)
    settings = Settings(state_folder=tmp_path)
    database = Database(database_url(settings, PORT))
    stopping = Ingress(settings, dict.fromkeys(settings.pools, None))
    app = stopping.__serve_build_asgi_app__()

    async def read_row() -> tuple[str, int]:
        """The status of the prediction, and when its lease expires."""

        def read(connection: Connection) -> tuple[str, int]:
            query = select(predictions.c.status, predictions.c.lease_expires_us)
            status, lease_expires_us = connection.execute(query).one()
            return str(status), int(lease_expires_us)

        return await database.read(read)

    async with running(app) as stop, httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        await stopping.wait_until_open()
        (await client.post("http://service/v1/predictions", json=CAT)).raise_for_status()
        stop.set()

        async def is_stopping() -> bool:
            return (await client.get("http://service/readyz")).status_code == 503

        async def is_renewed() -> bool:
            return (await read_row())[1] > expires_us

        await until(is_stopping)
        _, expires_us = await read_row()
        try:
            await until(is_renewed)
        finally:
            pool.may_start.set()
    assert (await read_row())[0] == "succeeded"
    await database.aclose()
