"""Runs a Starlette application on a loopback port."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette

from serve.settings import OutputSettings


class _Server(uvicorn.Server):
    """Stops as soon as `stop` is set. uvicorn polls every 0.1 s, which adds up over many short tests."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.stop.wait()


def listen() -> socket.socket:
    """A socket on a free loopback port."""
    return socket.create_server(("127.0.0.1", 0))


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def outputs_at(listener: socket.socket) -> OutputSettings:
    """Settings with which the links in responses, such as `urls.stream`, lead to `listener`."""
    return OutputSettings(public_url=url_of(listener))


@asynccontextmanager
async def listening(app: Starlette, listener: socket.socket | None = None) -> AsyncGenerator[str, None]:
    """Runs `app` for the duration of the block and yields its base URL."""
    with listener or listen() as listener:
        server = _Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.002)
        try:
            yield url_of(listener)
        finally:
            server.stop.set()
            await serving
