"""Clients that leave over a real connection while their prediction is drawn."""

import asyncio

import httpx
import pytest

from tests.app_factory import House, house
from tests.fakes import ONE_IMAGE, FakePool

CAT = {"input": {"prompt": "a cat", "num_inference_steps": 2}}


async def hang_up(home: House, pool: FakePool, path: str) -> None:
    """Calls `path`, and closes the connection as soon as the pool has the plan."""
    async with home.listening() as url, httpx.AsyncClient(base_url=url) as client:
        calling = asyncio.create_task(client.post(path, json=CAT, headers={"Prefer": "wait=5"}, timeout=10))
        while not pool.calls:
            await asyncio.sleep(0.001)
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        await asyncio.sleep(0.05)
        pool.going.set()
        await home.desk.wait(home.made[0], timeout_s=5)


@pytest.mark.parametrize(
    ("path", "status", "drawn"), [("/v1/predictions", "succeeded", 1), ("/predictions", "canceled", 0)]
)
async def test_a_prediction_outlives_its_client_on_v1_and_not_on_cog(path: str, status: str, drawn: int) -> None:
    pool = FakePool(ONE_IMAGE, going=False)
    home = house(pool)
    await hang_up(home, pool, path)
    prediction = await home.desk.get(home.made[0])
    assert (prediction.status, len(prediction.outputs)) == (status, drawn)
    assert pool.stopped == 1
