"""Limits on connections: which one is closed, and heads that are slow or too large."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from serve.api import connection_limits
from serve.api.connection_limits import MAX_HEAD_BYTES, Connections, LimitedHttpProtocol

CHUNK = bytes(100_000)
MAX_UNREAD_BYTES = 20_000_000
"""More than the buffers of both sockets, whose size the system chooses, and that of the server."""
HEAD = b"GET / HTTP/1.1\r\nHost: service\r\n"


@dataclass(eq=False)
class FakeConnection:
    address: str
    is_closed: bool = False

    def close(self) -> None:
        self.is_closed = True


def add(connections: Connections, address: str, idle: bool = True) -> FakeConnection:
    connection = FakeConnection(address)
    assert connections.add(connection)
    connections.set_idle(connection, idle)
    return connection


def test_longest_idle_connection_gives_its_place_to_a_new_one() -> None:
    connections = Connections(4)
    busy, first, second = (add(connections, address, address != "a") for address in "abc")
    connections.set_idle(first, False)
    connections.set_idle(first, True)
    add(connections, "d")
    assert not second.is_closed
    add(connections, "e")
    assert (busy.is_closed, first.is_closed, second.is_closed) == (False, False, True)


def test_no_connection_is_added_if_all_are_busy() -> None:
    connections = Connections(4)
    busy = [add(connections, address, idle=False) for address in "abcd"]
    assert not connections.add(FakeConnection("e"))
    connections.remove(busy[0])
    assert connections.add(FakeConnection("e"))


def test_address_has_at_most_half_of_all_connections() -> None:
    connections = Connections(4)
    other, first, second = (add(connections, address) for address in ("b", "a", "a"))
    add(connections, "a")
    assert (other.is_closed, first.is_closed, second.is_closed) == (False, True, False)
    add(connections, "b")
    assert not other.is_closed


def test_closed_connections_are_forgotten() -> None:
    connections = Connections(2)
    for _ in range(5):
        connection = add(connections, "a")
        connections.remove(connection)
        connections.remove(connection)
        connections.set_idle(connection, True)
        assert not connection.is_closed


class Server:
    """A uvicorn server with the limits."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def response_to(self, sent: bytes) -> bytes:
        """All that the server sends until it closes the connection."""
        reader, writer = await self.connect()
        writer.write(sent)
        content = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return content


class Sent:
    """What the server has sent for `/endless`, and whether it has lost the client."""

    bytes: ClassVar[int] = 0
    disconnected: ClassVar[asyncio.Event]


async def send_endlessly(receive: Receive, send: Send) -> None:
    """The response to `/endless`."""
    Sent.bytes, Sent.disconnected = 0, asyncio.Event()
    disconnect = asyncio.create_task(_wait_for_disconnect(receive))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while not disconnect.done():
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        Sent.bytes += len(CHUNK)
        await asyncio.sleep(0)
    Sent.disconnected.set()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/endless":
        await send_endlessly(receive, send)
        return
    if scope["path"] == "/body":
        await Request(scope, receive).body()
    await PlainTextResponse("fine")(scope, receive, send)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setattr(connection_limits, "HEAD_TIMEOUT_S", 0.1)
    monkeypatch.setattr(connection_limits, "SEND_TIMEOUT_S", 0.2)
    monkeypatch.setattr(LimitedHttpProtocol, "open_connections", Connections(100), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="critical", lifespan="off", http=LimitedHttpProtocol)
        running = uvicorn.Server(config)
        serving = asyncio.create_task(running.serve([listener]))
        while not running.started:
            await asyncio.sleep(0.002)
        yield Server(listener.getsockname()[1])
        running.should_exit = running.force_exit = True
        await serving


@pytest.mark.parametrize("sent", [b"", b"GET / HT", HEAD, b"\r\n", HEAD + b"X-Slow: a"])
async def test_connection_without_a_complete_head_is_closed(server: Server, sent: bytes) -> None:
    assert await server.response_to(sent) == b""


async def test_head_that_never_ends_is_rejected_with_431(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "HEAD_TIMEOUT_S", 60)
    for start in (HEAD + b"X-Long: ", HEAD, b"GET /"):
        assert b" 431 " in await server.response_to(start + b"x" * MAX_HEAD_BYTES)


async def test_requests_on_one_connection_are_served(server: Server) -> None:
    reader, writer = await server.connect()
    for _ in range(3):
        writer.write(HEAD + b"\r\n")
        assert b"200 OK" in await reader.readuntil(b"fine")
    writer.write(HEAD + b"\r\n" + HEAD + b"\r\n")
    for _ in range(2):
        assert b"200 OK" in await reader.readuntil(b"fine")
    writer.close()


async def test_body_that_never_ends_after_its_response_is_closed(server: Server) -> None:
    reader, writer = await server.connect()
    writer.write(b"POST / HTTP/1.1\r\nHost: service\r\nContent-Length: 100\r\n\r\nx")
    assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"fine")
    writer.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such timeout")
async def test_client_that_stops_reading_is_disconnected(server: Server) -> None:
    _, writer = await server.connect()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /endless HTTP/1.1\r\nHost: service\r\n\r\n")
    while not Sent.bytes:
        await asyncio.sleep(0.001)
    await asyncio.wait_for(Sent.disconnected.wait(), 10)
    assert Sent.bytes < MAX_UNREAD_BYTES
    writer.close()


async def test_slow_body_is_not_limited_here(server: Server) -> None:
    reader, writer = await server.connect()
    writer.write(b"POST /body HTTP/1.1\r\nHost: service\r\nContent-Length: 2\r\n\r\nx")
    await asyncio.sleep(0.3)
    writer.write(b"y")
    assert b"200 OK" in await reader.readuntil(b"fine")
    writer.close()
