"""Middleware of Serve's HTTP proxy."""

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import telemetry
from serve.api.error_responses import error_response
from serve.api.signs_of_life import ALIVE, REQUEST_HEADER, SILENCE_LIMIT_S
from serve.errors import BodyTimedOut, IngressLost, NotReady, ServiceError

SERVE_HEADERS = frozenset({b"x-request-timeout-seconds", b"x-request-disconnect-disabled"})
"""Request headers by which callers would change how Serve handles their requests."""


class ProxyErrorMiddleware:
    """ASGI middleware that replaces the proxy's own error responses, which are plain text, by those of the API.

    Without it, a request whose ingress is lost gets `500 Internal Server Error`, and a service without an ingress
    responds with 404. Without an ingress that takes it, or if the ingress hangs, the request would wait without a
    limit. It also removes `SERVE_HEADERS`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if name not in SERVE_HEADERS]
        limit = asyncio.timeout(SILENCE_LIMIT_S)
        response = _Response(send, limit)
        try:
            async with limit:
                await self._app({**scope, "headers": [*headers, (REQUEST_HEADER, b"1")]}, receive, response.send)
        except TimeoutError:
            if not limit.expired():
                raise
        error = response.error
        if limit.expired() or not response.started:
            telemetry.INGRESS_LOST.add()
            error = IngressLost()
        if error is not None:
            await error_response(error, scope)(scope, receive, send)


class _Response:
    """Passes a response on, unless it is an error of the proxy. It may begin until `limit` has expired."""

    def __init__(self, send: Send, limit: asyncio.Timeout) -> None:
        self._send = send
        self._limit = limit
        self.started = False
        self.error: ServiceError | None = None

    async def send(self, message: Message) -> None:
        if self._limit.expired():
            return  # The proxy's own answer to the cancellation.
        if message["type"] == ALIVE["type"]:
            self._limit.reschedule(asyncio.get_running_loop().time() + SILENCE_LIMIT_S)
            return
        if message["type"] == "http.response.start":
            self.started = True
            self._limit.reschedule(None)
            self.error = _proxy_error(message)
        if self.error is None:
            await self._send(message)


def _proxy_error(start: dict[str, Any] | Message) -> ServiceError | None:
    """The error for a response of the proxy itself. The ingress responds with JSON to requests that fail."""
    content_type = dict(start["headers"]).get(b"content-type", b"")
    if start["status"] < 400 or not content_type.startswith(b"text/plain"):
        return None
    if start["status"] == BodyTimedOut.status:
        return BodyTimedOut()
    return NotReady("the service is starting, stopping or overloaded; try again soon")
