"""The readiness probe."""

import httpx

from serve.settings import PoolSettings, Settings
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import ONE_IMAGE, FakePool

ONE_IN_FLIGHT = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=1)})


async def probe(app: AppUnderTest, path: str = "/readyz") -> httpx.Response:
    async with app.http as client:
        return await client.get(path)


async def test_service_is_ready_between_start_and_stop_also_if_it_is_full() -> None:
    app = make_app(FakePool(ONE_IMAGE, may_start=False), ONE_IN_FLIGHT, opened=False)
    assert (await probe(app)).status_code == 503
    app.service.open()
    assert (await probe(app)).json() == {"status": "ready"}
    prediction = await app.create({"prompt": "a cat"})
    assert (await probe(app)).json() == {"status": "full"}
    await app.service.cancel(prediction.id)
    await app.service.close(grace_s=1)
    assert (await probe(app)).status_code == 503


async def test_probes_need_no_token() -> None:
    app = make_app(FakePool(ONE_IMAGE), token="secret")
    assert {(await probe(app, path)).status_code for path in ("/readyz", "/health-check")} == {200}
    assert (await probe(app, "/openapi.json")).status_code == 401
