"""Clients that close a real connection before their prediction has ended."""

import asyncio

import httpx
import pytest

from tests.app_factory import AppUnderTest, make_app
from tests.fakes import ONE_IMAGE, FakePool

CAT = {"input": {"prompt": "a cat", "num_inference_steps": 2}}


async def post_and_disconnect(app: AppUnderTest, pool: FakePool, path: str) -> None:
    """Posts to `path`, closes the connection when the pool has the plan, and waits until the prediction has ended."""
    async with app.listening() as url, httpx.AsyncClient(base_url=url) as client:
        request = asyncio.create_task(client.post(path, json=CAT, headers={"Prefer": "wait=5"}, timeout=10))
        while not pool.calls:
            await asyncio.sleep(0.001)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await asyncio.sleep(0.05)
        pool.may_start.set()
        await app.service.wait(app.prediction_ids[0], timeout_s=5)


@pytest.mark.parametrize(
    ("path", "status", "num_outputs"), [("/v1/predictions", "succeeded", 1), ("/predictions", "canceled", 0)]
)
async def test_disconnect_cancels_the_prediction_of_the_cog_api_only(path: str, status: str, num_outputs: int) -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool)
    await post_and_disconnect(app, pool, path)
    prediction = await app.service.get(app.prediction_ids[0])
    assert (prediction.status, len(prediction.outputs)) == (status, num_outputs)
    assert pool.stop_count == 1
