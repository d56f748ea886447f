"""Maps errors to HTTP responses: problem+json under `/v1/`, Cog's `detail` elsewhere."""

import logging
import math
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.http_messages import InvalidBody
from serve.errors import InvalidInput, ServiceError, Unauthenticated, public_error

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""For logs only: nobody reads the answer."""

Style = Callable[[ServiceError], dict[str, Any]]


class ErrorMiddleware:
    """ASGI middleware around the faces, and around what guards them: every error that leaves them becomes an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            await _answer(error, scope)(scope, receive, send)


def problem_json(error: ServiceError) -> dict[str, Any]:
    """`application/problem+json` (RFC 9457), as the `/v1` face speaks it."""
    body: dict[str, Any] = {"title": error.title, "detail": str(error), "status": error.status}
    if error.retry_after_s is not None:
        body["retry_after"] = math.ceil(error.retry_after_s)
    if isinstance(error, InvalidInput):
        within = "" if isinstance(error, InvalidBody) else "input."
        body["invalid_fields"] = [
            {"type": fault.kind, "field": f"{within}{fault.field}", "description": fault.message}
            for fault in error.field_errors
        ]
    return body


def cog_detail(error: ServiceError) -> dict[str, Any]:
    """A single `detail`, as Cog's containers speak it: a list of faults, or one sentence."""
    if not isinstance(error, InvalidInput):
        return {"detail": str(error)}
    within = ("body",) if isinstance(error, InvalidBody) else ("body", "input")
    return {
        "detail": [
            {"loc": [*within, fault.field], "msg": fault.message, "type": fault.kind} for fault in error.field_errors
        ]
    }


MEDIA_TYPES: dict[Style, str] = {problem_json: "application/problem+json", cog_detail: "application/json"}


async def http_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler for the `HTTPException` that its router raises for unknown paths and methods."""
    assert isinstance(error, HTTPException)
    known = ServiceError(error.detail)
    known.status, known.title = error.status_code, error.detail
    response = _styled(known, request.scope)
    response.headers.update(error.headers or {})
    return response


def _answer(error: Exception, scope: Scope) -> Response:
    request_id = scope.get("state", {}).get("request_id")
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    known = public_error(error)
    if known is None:
        log.error("request %s: %s %s failed", request_id, scope["method"], scope["path"], exc_info=error)
        known = ServiceError(f"the service could not answer; the operator's log has the cause of request {request_id}")
    response = _styled(known, scope)
    if request_id is not None:
        response.headers["X-Request-ID"] = request_id
    return response


def _styled(error: ServiceError, scope: Scope) -> Response:
    style = problem_json if scope["path"].startswith("/v1/") else cog_detail
    response = JSONResponse(style(error), error.status, media_type=MEDIA_TYPES[style])
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
