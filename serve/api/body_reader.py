"""ASGI middleware that bounds the time and the number of request bodies that arrive.

A request that waits for its body has a place among the requests that the ingress handles at once, so clients that stop
within their bodies would keep others out.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import BodyTimedOut
from serve.settings import Settings


class BodyLimits:
    """The bodies that are arriving. An instance belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._timeout_s = settings.body_timeout_s
        self._min_bytes_per_s = settings.min_body_bytes_per_s
        self._max_bodies = settings.max_concurrent_bodies
        self._waiting: dict[asyncio.Timeout, None] = {}
        """The time limits of the bodies that the service waits for, the longest wait first."""

    async def receive(self, receive: Receive, started_s: float, received_bytes: int) -> Message:
        """The next message of a body. Raises `BodyTimedOut`."""
        deadline_s = started_s + self._timeout_s + received_bytes / self._min_bytes_per_s
        try:
            async with asyncio.timeout_at(deadline_s) as timeout:
                with self._wait(timeout):
                    return await receive()
        except TimeoutError:
            raise BodyTimedOut from None

    @contextmanager
    def _wait(self, timeout: asyncio.Timeout) -> Iterator[None]:
        if len(self._waiting) >= self._max_bodies:
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            if not longest.expired():
                longest.reschedule(0)
        self._waiting[timeout] = None
        try:
            yield
        finally:
            self._waiting.pop(timeout, None)


class BodyReaderMiddleware:
    """Limits the bodies that the app reads. A body that it does not read takes no place."""

    def __init__(self, app: ASGIApp, limits: BodyLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limited = _LimitedBody(receive, self._limits) if scope["type"] == "http" else receive
        await self._app(scope, limited, send)


class _LimitedBody:
    """An ASGI `receive`. When the body is complete, it waits for the client's disconnect without a limit."""

    def __init__(self, receive: Receive, limits: BodyLimits) -> None:
        self._receive = receive
        self._limits = limits
        self._started_s: float | None = None
        self._received_bytes = 0
        self._is_complete = False

    async def __call__(self) -> Message:
        if self._is_complete:
            return await self._receive()
        if self._started_s is None:
            self._started_s = asyncio.get_running_loop().time()
        message = await self._limits.receive(self._receive, self._started_s, self._received_bytes)
        self._received_bytes += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        return message
