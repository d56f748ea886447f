"""ASGI middleware that compresses responses with gzip, apart from those that may have images."""

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

MIN_BYTES = 1000
LEVEL = 6
EXCLUDED_TYPES = ("image/*", "application/octet-stream", "text/event-stream")


class ResponseCompressionMiddleware:
    """Compresses for clients that accept it.

    A prediction may have images as `data:` URIs. They shrink by a quarter, which costs more time than it saves.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._compressed = GZipMiddleware(
            app, minimum_size=MIN_BYTES, compresslevel=LEVEL, exclude_content_types=EXCLUDED_TYPES
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app if scope["type"] != "http" or _may_have_images(scope) else self._compressed
        await app(scope, receive, send)


def _may_have_images(scope: Scope) -> bool:
    return bool(scope["method"] == "POST" or scope["path"].startswith("/v1/predictions/"))
