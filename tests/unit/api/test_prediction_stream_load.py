"""Thousands of clients that follow unfinished predictions of another process."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median

import psutil
import pytest

from serve.predictions.followers import RECHECK_S
from serve.settings import PoolSettings, Settings
from tests import stream_clients
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import ONE_IMAGE, FakePool
from tests.open_files import allow_sockets

PREDICTIONS = 20
SETTINGS = Settings(pools={"dev-bf16": PoolSettings(model="dev", max_in_flight=2 * PREDICTIONS)})
CAT = {"prompt": "a cat", "num_inference_steps": 2}
MAX_STREAM_BYTES = 200_000


@pytest.fixture(params=[200, pytest.param(10_000, marks=pytest.mark.slow_requests)])
def streams(request: pytest.FixtureRequest) -> int:
    """The number of streams, if this process may open so many sockets."""
    count: int = request.param
    allow_sockets(count)
    return count


class ReadCounter:
    """Counts the reads of the database of an application."""

    def __init__(self, app: AppUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        read = app.database.read

        async def counting(work: Callable[..., Awaitable[object]]) -> object:
            self.count += 1
            return await read(work)

        monkeypatch.setattr(app.database, "read", counting)


async def test_idle_streams_share_reads_and_leave_the_service_responsive(
    streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_app(FakePool(ONE_IMAGE, may_start=False), SETTINGS)
    ids = [(await runner.create(CAT)).id for _ in range(PREDICTIONS)]
    app = make_app(FakePool(ONE_IMAGE), SETTINGS, state=runner.state)
    reads, process = ReadCounter(app, monkeypatch), psutil.Process()
    async with app.listening() as url, app.http as http:
        assert (await http.post("/predictions", json={"input": CAT})).status_code == 200
        before_bytes = process.memory_info().rss
        command = [sys.executable, stream_clients.__file__, str(streams)]
        urls = [f"{url}/v1/predictions/{each}/stream" for each in ids]
        clients = await asyncio.create_subprocess_exec(*command, *urls, stdout=asyncio.subprocess.PIPE)
        assert clients.stdout is not None
        assert await clients.stdout.readline() == b"started\n"
        stream_bytes = (process.memory_info().rss - before_bytes) / streams
        before, start_s, times_s = reads.count, time.monotonic(), []
        for _ in range(10):
            request_s = time.monotonic()
            created = await http.post("/predictions", json={"input": CAT})
            assert created.json()["status"] == "succeeded"
            assert (await http.get(f"/v1/predictions/{ids[0]}")).status_code == 200
            times_s.append(time.monotonic() - request_s)
        own_reads = reads.count - before
        await asyncio.sleep(RECHECK_S)
        rechecks = 1 + (time.monotonic() - start_s) / RECHECK_S
        print(
            f"{streams} streams: {stream_bytes / 1000:.0f} kB each; {reads.count - before} reads in"
            f" {time.monotonic() - start_s:.1f} s; a creation and a get took {1000 * median(times_s):.0f} ms"
        )
        assert own_reads < 10 * 20 + PREDICTIONS * rechecks
        assert reads.count - before - own_reads <= PREDICTIONS * rechecks
        assert stream_bytes < MAX_STREAM_BYTES
        for each in ids:
            await runner.service.cancel(each)
        assert await clients.stdout.readline() == f"{streams}\n".encode()
        assert await clients.wait() == 0
