"""The benchmark of previews, with a pool that only draws."""

import asyncio
from argparse import Namespace
from collections.abc import AsyncGenerator

import httpx
import pytest

from benchmarks.previews import Client, run_round
from benchmarks.service import run_requests
from tests.app_factory import close_apps, make_app
from tests.drawing_pool import DrawingPool


@pytest.fixture(autouse=True)
async def closed_apps() -> AsyncGenerator[None, None]:
    yield
    await close_apps()


@pytest.mark.parametrize(("watches", "watched"), [(False, 0), (True, 1)])
async def test_one_of_the_requests_in_flight_is_watched(watches: bool, watched: int) -> None:
    pool = DrawingPool()
    async with make_app(pool).listening() as url, httpx.AsyncClient(base_url=url) as http:
        client = Client(http, watches, in_flight=4)
        pool.may_finish.clear()
        running = asyncio.create_task(run_requests(client.generate, requests=4, in_flight=4, steps=12))
        async with asyncio.timeout(20):
            while len(pool.plans) < 4 or client.previews < watched:
                await asyncio.sleep(0.01)
        pool.may_finish.set()
        result = await running
    assert (result["images_per_s"] > 0, result["mean_batch"]) == (True, 1.5)
    assert bool(client.previews) == watches
    assert sorted(plan.previews for plan in pool.plans) == [0] * (4 - watched) + [4] * watched


async def test_round_without_previews_fails_if_they_are_expected() -> None:
    async with make_app(DrawingPool()).listening() as url:
        with pytest.raises(RuntimeError):
            await run_round(url, True, Namespace(requests=2, in_flight=2, steps=2))
