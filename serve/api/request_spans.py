"""Traces HTTP requests."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import tracing
from serve.api.auth import PUBLIC_PATHS

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"})
OTHER_METHOD = "_OTHER"


class RequestSpanMiddleware:
    """ASGI middleware that opens a span for each request but those of probes.

    The attributes follow OpenTelemetry's conventions. It has the path of the route, never that of the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
        with tracing.server_span("HTTP", Headers(scope=scope), {"http.request.method": method}) as span:

            async def send_traced(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set({"http.response.status_code": message["status"]})
                await send(message)

            try:
                await self._app(scope, receive, send_traced)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.set({"http.route": route})
