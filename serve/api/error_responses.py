"""Maps errors to HTTP responses.

They are problem+json under `/v1/` and for unknown paths, in OpenAI's form under `/v1/images`, and Cog's `detail`
elsewhere.
"""

import logging
import math
from collections.abc import Callable
from http.client import METHOD_NOT_ALLOWED, REQUEST_TIMEOUT
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.openai.errors import is_images_path, openai_error, openai_status
from serve.errors import DatabaseUnavailable, InvalidInput, ServiceError, Unauthenticated, UnknownEncoding, public_error

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""Appears in access logs only: the client has disconnected."""
MAX_SHOWN_CHARS = 100

BodyFormat = Callable[[ServiceError], dict[str, Any]]


class ErrorMiddleware:
    """ASGI middleware that turns every exception of the app and of inner middleware into a response.

    Exceptions raised after the response has started are raised again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response_started = False

        async def tracking_send(message: Message) -> None:
            nonlocal response_started
            response_started = True
            await send(message)

        try:
            await self._app(scope, receive, tracking_send)
        except Exception as error:
            if response_started or scope["type"] != "http":
                raise
            await error_response(error, scope)(scope, receive, send)


async def http_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler for the `HTTPException` that its router raises for unknown paths and methods.

    The response is problem+json for all other paths than OpenAI's, as an unknown path belongs to no API.
    """
    assert isinstance(error, HTTPException)
    endpoint = f"{request.method[:MAX_SHOWN_CHARS]} {request.url.path[:MAX_SHOWN_CHARS]}"
    hint, headers = "GET /openapi.json lists the endpoints", error.headers
    if error.status_code == METHOD_NOT_ALLOWED:
        allowed = _allowed_methods(request)
        hint, headers = f"this path has {allowed}", {"Allow": allowed}
    service_error = ServiceError(f"this service does not serve {endpoint}; {hint}")
    service_error.status, service_error.title = error.status_code, error.detail
    body_format = openai_error if is_images_path(request.url.path) else problem_json
    return JSONResponse(body_format(service_error), error.status_code, headers, MEDIA_TYPES[body_format])


def _allowed_methods(request: Request) -> str:
    """The methods of all routes with this path: Starlette itself names only those of the first one."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = [route.methods or set() for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted(set[str]().union(*matching)))


def problem_json(error: ServiceError) -> dict[str, Any]:
    """The `application/problem+json` body (RFC 9457) of the Replicate API."""
    body: dict[str, Any] = {"title": error.title, "detail": str(error), "status": error.status}
    if error.retry_after_s is not None:
        body["retry_after"] = math.ceil(error.retry_after_s)
    if isinstance(error, InvalidInput):
        parents = error.location[1:]
        body["invalid_fields"] = [
            {"type": each.kind, "field": ".".join((*parents, each.field)), "description": each.message}
            for each in error.field_errors
        ]
    return body


def cog_detail(error: ServiceError) -> dict[str, Any]:
    """The `{"detail": ...}` body of the Cog API: a list of field errors, or a message."""
    if not isinstance(error, InvalidInput):
        return {"detail": str(error)}
    return {
        "detail": [
            {"loc": [*error.location, each.field], "msg": each.message, "type": each.kind}
            for each in error.field_errors
        ]
    }


MEDIA_TYPES: dict[BodyFormat, str] = {
    problem_json: "application/problem+json",
    openai_error: "application/json",
    cog_detail: "application/json",
}


def error_response(error: Exception, scope: Scope) -> Response:
    """The response for an error, in the form of the API to which the path belongs."""
    request_id = scope.get("state", {}).get("request_id")
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    service_error = public_error(error)
    if service_error is None:
        # The path may contain line breaks, which `%r` escapes.
        log.error("request %s failed: %s %r", request_id, scope["method"], scope["path"], exc_info=error)
        service_error = ServiceError(f"internal error; the server log has the cause of request {request_id}")
    elif isinstance(service_error, DatabaseUnavailable):
        log.warning("request %s: the database is unavailable: %s", request_id, service_error.cause)
    return _formatted(service_error, scope)


def _formatted(error: ServiceError, scope: Scope) -> Response:
    body_format = _body_format(scope["path"])
    status = openai_status(error) if body_format is openai_error else error.status
    response = JSONResponse(body_format(error), status, media_type=MEDIA_TYPES[body_format])
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.status == REQUEST_TIMEOUT:
        # The rest of the body would follow.
        response.headers["Connection"] = "close"
    if isinstance(error, UnknownEncoding):
        response.headers["Accept-Encoding"] = "gzip"
    return response


def _body_format(path: str) -> BodyFormat:
    if is_images_path(path):
        return openai_error
    return problem_json if path.startswith("/v1/") else cog_detail
