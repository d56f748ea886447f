"""Bodies that arrive slowly, or never end."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message

from serve.api.body_reader import BodyLimits, BodyReaderMiddleware
from serve.errors import BodyTimedOut
from serve.settings import Settings
from tests.app_factory import make_app
from tests.fakes import ONE_IMAGE, FakePool


class Client:
    """Sends a body when told to."""

    def __init__(self) -> None:
        self.messages = asyncio.Queue[Message]()
        self.sent: list[Message] = []

    def send_body(self, body: bytes, more_body: bool) -> None:
        self.messages.put_nowait({"type": "http.request", "body": body, "more_body": more_body})

    def post(self, limits: BodyLimits) -> "asyncio.Task[None]":
        async def app(scope: Any, receive: Any, send: Any) -> None:
            body = await Request(scope, receive).body()
            await JSONResponse(len(body))(scope, receive, send)

        async def send(message: Message) -> None:
            self.sent.append(message)

        scope = {"type": "http", "method": "POST", "headers": []}
        return asyncio.create_task(BodyReaderMiddleware(app, limits)(scope, self.messages.get, send))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_body_that_stops_times_out() -> None:
    client = Client()
    reading = client.post(BodyLimits(Settings(body_timeout_s=0.01)))
    client.send_body(b"abc", more_body=True)
    with pytest.raises(BodyTimedOut):
        await reading


async def test_received_bytes_extend_the_time() -> None:
    client = Client()
    reading = client.post(BodyLimits(Settings(body_timeout_s=0.01, min_body_bytes_per_s=1)))
    client.send_body(b"x" * 3600, more_body=True)
    await asyncio.sleep(0.05)
    client.send_body(b"x", more_body=False)
    await reading
    assert client.sent[0]["status"] == 200


async def test_the_body_that_paused_the_longest_gives_its_place_to_a_new_one() -> None:
    limits = BodyLimits(Settings(max_concurrent_bodies=3))
    clients = [Client() for _ in range(5)]
    readings = []
    for client in clients[:3]:
        readings.append(client.post(limits))
        await settle()
    clients[0].send_body(b"x", more_body=True)
    await settle()
    for client in clients[3:]:
        readings.append(client.post(limits))
        await settle()
    assert [reading.done() for reading in readings] == [False, True, True, False, False]
    assert isinstance(readings[1].exception(), BodyTimedOut)
    assert isinstance(readings[2].exception(), BodyTimedOut)
    for index in (0, 3, 4):
        clients[index].send_body(b"x", more_body=False)
        await readings[index]


async def test_complete_bodies_take_no_place() -> None:
    limits = BodyLimits(Settings(max_concurrent_bodies=1))
    slow = Client()
    reading = slow.post(limits)
    await settle()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Request(scope, receive).body()
        await receive()

    complete = Client()
    complete.send_body(b"x", more_body=False)
    scope = {"type": "http", "method": "POST", "headers": []}
    waiting = asyncio.create_task(
        BodyReaderMiddleware(app, limits)(scope, complete.messages.get, complete.messages.put)
    )
    await settle()
    assert (waiting.done(), reading.done()) == (False, True)
    other = Client()
    reading_other = other.post(limits)
    await settle()
    assert (waiting.done(), reading_other.done()) == (False, False)
    for task in (waiting, reading, reading_other):
        task.cancel()
    await asyncio.gather(waiting, reading, reading_other, return_exceptions=True)


async def response_to_stalled_body(url: str, path: str, content_type: str) -> tuple[bytes, Any]:
    """The head of the response and its JSON. HTTP clients read no response before they have sent the body."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST {path} HTTP/1.1\r\nHost: service\r\nContent-Type: {content_type}\r\nContent-Length: 100\r\n\r\n"
    writer.write(head.encode() + b"-")  # JSON and multipart may begin with it.
    async with asyncio.timeout(10):
        response = await reader.read()
    writer.close()
    response_head, _, body = response.partition(b"\r\n\r\n")
    return response_head, json.loads(body)


@pytest.mark.parametrize(
    ("path", "content_type", "key"),
    [
        ("/v1/predictions", "application/json", "title"),
        ("/predictions", "application/json", "detail"),
        ("/v1/images/generations", "application/json", "error"),
        ("/v1/images/edits", "multipart/form-data; boundary=b", "error"),
        ("/v1/files", "multipart/form-data; boundary=b", "title"),
    ],
)
async def test_stalled_body_is_rejected_with_408_by_every_api(path: str, content_type: str, key: str) -> None:
    app = make_app(FakePool(ONE_IMAGE), Settings(body_timeout_s=0.05))
    async with app.listening() as url:
        head, body = await response_to_stalled_body(url, path, content_type)
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    assert key in body
