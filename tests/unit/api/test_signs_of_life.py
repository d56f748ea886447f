"""Signs of life of the ingress while a request waits for its response."""

import asyncio
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from serve.api import signs_of_life
from serve.api.signs_of_life import ALIVE, REQUEST_HEADER, SignsOfLifeMiddleware

UNUSED: Any = None


class Client:
    """Collects the messages of a response, and sets `enough` after `count` of them."""

    def __init__(self, count: int) -> None:
        self.types: list[str] = []
        self.enough = asyncio.Event()
        self._count = count

    async def send(self, message: Message) -> None:
        self.types.append(message["type"])
        if len(self.types) >= self._count:
            self.enough.set()


def scope(*headers: tuple[bytes, bytes]) -> Scope:
    return {"type": "http", "method": "GET", "path": "/", "headers": headers}


@pytest.fixture(autouse=True)
def short_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs_of_life, "PERIOD_S", 0.001)


async def test_signs_are_sent_until_the_response_begins() -> None:
    client = Client(3)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await client.enough.wait()
        await PlainTextResponse("done")(scope, receive, send)
        await asyncio.sleep(0.01)

    await SignsOfLifeMiddleware(app)(scope((REQUEST_HEADER, b"1")), UNUSED, client.send)
    assert client.types == [*[ALIVE["type"]] * 3, "http.response.start", "http.response.body"]


async def test_no_signs_are_sent_after_an_error() -> None:
    client = Client(1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await SignsOfLifeMiddleware(app)(scope((REQUEST_HEADER, b"1")), UNUSED, client.send)
    await asyncio.sleep(0.01)
    assert client.types == []


async def test_other_servers_get_no_signs() -> None:
    client = Client(2)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.01)
        await PlainTextResponse("done")(scope, receive, send)

    await SignsOfLifeMiddleware(app)(scope((b"prefer", b"wait")), UNUSED, client.send)
    assert client.types == ["http.response.start", "http.response.body"]
