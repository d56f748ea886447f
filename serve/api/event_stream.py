"""Responses of server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.api.client_disconnect import cancel_on_disconnect

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment. Proxies close connections on which nothing is sent for a minute."""
KEEP_ALIVE_S = 15.0
SEND_TIMEOUT_S = 60.0
"""A client that reads nothing for this long is dropped. Until then, the server keeps one event for it."""

Events = AsyncGenerator[bytes, None]


def encode_event(name: str, data: Mapping[str, Any], event_id: str | None = None) -> bytes:
    return encode_text_event(name, json.dumps(data, separators=(",", ":")), event_id)


def encode_text_event(name: str, text: str, event_id: str | None = None) -> bytes:
    id_line = "" if event_id is None else f"id: {event_id}\n"
    # Line breaks include those at which only clients in Python break lines.
    *lines, last = f"{text}.".splitlines()
    data = "".join(f"data: {line}\n" for line in (*lines, last[:-1]))
    return f"event: {name}\n{id_line}{data}\n".encode()


class EventStream(Response):
    """Sends events as they come, and a comment after each `keep_alive_s` without one.

    `opened` is entered when the response is sent: an error that it raises becomes an ordinary error response. It is
    left when the last event was sent, the client disconnects, or it reads nothing for `send_timeout_s`. The response to
    HEAD has headers only, and is sent at once.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        opened: AbstractAsyncContextManager[Events],
        keep_alive_s: float = KEEP_ALIVE_S,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self._opened = opened
        self._keep_alive_s = keep_alive_s
        self._send_timeout_s = send_timeout_s
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await self._send_start(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        try:
            await cancel_on_disconnect(receive, self._send(send))
        except ClientDisconnect:
            # After the start of a response, an error would be logged as a failure of the service.
            if not self._started:
                raise

    async def _send(self, send: Send) -> None:
        async with self._opened as events, aclosing(_with_keep_alive(events, self._keep_alive_s)) as chunks:
            self._started = True
            await self._send_start(send)
            async for chunk in chunks:
                await self._send_chunk(send, chunk)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    async def _send_chunk(self, send: Send, chunk: bytes) -> None:
        """Raises `ClientDisconnect` if the client does not read it in time."""
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            raise ClientDisconnect from None


async def _with_keep_alive(events: Events, period_s: float) -> Events:
    following: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(events, None))
            done, _ = await asyncio.wait({following}, timeout=period_s)
            if not done:
                yield KEEP_ALIVE
                continue
            event, following = following.result(), None
            if event is None:
                return
            yield event
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await events.aclose()
