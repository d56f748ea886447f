"""Responses of server-sent events: encoding, comments, errors and disconnects."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from serve.api.event_stream import KEEP_ALIVE, Events, EventStream, encode_event
from serve.errors import NotReady


class Client:
    """The messages that a client receives, until it sets `disconnected`.

    A client that stops reading never finishes to receive the first body.
    """

    def __init__(self, stops_reading: bool = False) -> None:
        self._stops_reading = stops_reading
        self.received: list[dict[str, Any]] = []
        self.disconnected = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.received)

    async def call(self, response: EventStream, method: str = "GET") -> None:
        async def receive() -> dict[str, Any]:
            await self.disconnected.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            self.received.append(message)
            if self._stops_reading and message.get("body"):
                await asyncio.Event().wait()

        await asyncio.wait_for(response({"type": "http", "method": method}, receive, send), 5)


class Source:
    """Events that are opened and closed."""

    def __init__(self, *events: bytes, error: Exception | None = None) -> None:
        self._events = events
        self._error = error
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.is_open = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Events]:
        if self._error:
            raise self._error
        self.is_open = True
        try:
            yield self._iterate()
        finally:
            self.is_open = False

    async def _iterate(self) -> AsyncGenerator[bytes, None]:
        for event in self._events:
            yield event
        await self.may_end.wait()


def test_event_has_a_name_and_json_on_one_line() -> None:
    assert encode_event("done", {"text": "a\nb", "n": 1}) == b'event: done\ndata: {"text":"a\\nb","n":1}\n\n'


async def test_events_are_sent_one_by_one() -> None:
    client, source = Client(), Source(b"1", b"2")
    await client.call(EventStream(source.opened()))
    start, *bodies = client.received
    assert start["status"] == 200
    headers = dict(start["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert b"content-length" not in headers
    assert [(body["body"], body["more_body"]) for body in bodies] == [(b"1", True), (b"2", True), (b"", False)]
    assert not source.is_open


async def test_head_gets_the_headers_at_once() -> None:
    client, source = Client(), Source(b"1")
    source.may_end.clear()
    await client.call(EventStream(source.opened()), "HEAD")
    start, end = client.received
    assert start["status"] == 200
    assert dict(start["headers"])[b"content-type"].startswith(b"text/event-stream")
    assert end == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_comment_is_sent_while_no_event_comes() -> None:
    client, source = Client(), Source(b"1")
    source.may_end.clear()
    call = asyncio.create_task(client.call(EventStream(source.opened(), keep_alive_s=0.001)))
    while client.body.count(KEEP_ALIVE) < 2:
        await asyncio.sleep(0.001)
    source.may_end.set()
    await call
    assert client.body.startswith(b"1" + KEEP_ALIVE)


async def test_error_while_opening_is_raised_before_the_response_starts() -> None:
    client = Client()
    with pytest.raises(NotReady):
        await client.call(EventStream(Source(error=NotReady("starting")).opened()))
    assert client.received == []


async def test_disconnect_closes_the_events() -> None:
    client, source = Client(), Source(b"1")
    source.may_end.clear()
    call = asyncio.create_task(client.call(EventStream(source.opened())))
    while client.body != b"1":
        await asyncio.sleep(0.001)
    client.disconnected.set()
    await call
    assert not source.is_open


async def test_disconnect_before_the_response_starts_is_raised() -> None:
    @asynccontextmanager
    async def slow() -> AsyncIterator[Events]:
        await asyncio.Event().wait()
        yield Source()._iterate()

    client = Client()
    client.disconnected.set()
    with pytest.raises(ClientDisconnect):
        await client.call(EventStream(slow()))


async def test_client_that_stops_reading_is_dropped() -> None:
    client, source = Client(stops_reading=True), Source(b"1", b"2", b"3")
    source.may_end.clear()
    await client.call(EventStream(source.opened(), send_timeout_s=0.01))
    assert client.body == b"1"
    assert not source.is_open


def test_event_has_an_id() -> None:
    assert encode_event("done", {}, "1:2") == b"event: done\nid: 1:2\ndata: {}\n\n"
