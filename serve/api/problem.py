"""The one table from error to answer, in the two styles that the faces speak. Knows no route.

What an answer says of an error is its own sentence when it is one of `serve.errors`; of any other error it names only
the id of the request, under which the log has the cause.
"""

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from serve.api.body import InvalidBody
from serve.errors import InvalidInput, NotFound, ServiceError
from serve.predictions.failure import told

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]
Style = Callable[[ServiceError], dict[str, Any]]


def problem(error: ServiceError) -> dict[str, Any]:
    """`application/problem+json` (RFC 9457), as the `/v1` face speaks it."""
    body: dict[str, Any] = {"title": error.title, "detail": str(error), "status": error.status}
    if error.retry_after_s is not None:
        body["retry_after"] = math.ceil(error.retry_after_s)
    if isinstance(error, InvalidInput):
        within = "" if isinstance(error, InvalidBody) else "input."
        body["invalid_fields"] = [
            {"type": fault.kind, "field": f"{within}{fault.field}", "description": fault.message}
            for fault in error.faults
        ]
    return body


def detail(error: ServiceError) -> dict[str, Any]:
    """A single `detail`, as Cog's containers speak it: a list of faults, or one sentence."""
    if not isinstance(error, InvalidInput):
        return {"detail": str(error)}
    within = ("body",) if isinstance(error, InvalidBody) else ("body", "input")
    return {
        "detail": [
            {"loc": [*within, fault.field], "msg": fault.message, "type": fault.kind} for fault in error.faults
        ]
    }


MEDIA_TYPES: dict[Style, str] = {problem: "application/problem+json", detail: "application/json"}


def answer(error: ServiceError, style: Style) -> Response:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(math.ceil(error.retry_after_s))}
    return JSONResponse(style(error), error.status, headers, MEDIA_TYPES[style])


def answering(endpoint: Endpoint, style: Style) -> Endpoint:
    """`endpoint`, with every error that leaves it turned into an answer."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            return answer(told(error) or _unexpected(request), style)

    return guarded


async def unrouted(request: Request, error: Exception) -> Response:
    """For Starlette's `HTTPException`, which its router raises for unknown paths and methods."""
    if not isinstance(error, HTTPException):
        raise error
    style = problem if request.scope["path"].startswith("/v1/") else detail
    known = NotFound("there is nothing at this path") if error.status_code == 404 else ServiceError(error.detail)
    body = style(known) | ({"title": error.detail, "status": error.status_code} if style is problem else {})
    return JSONResponse(body, error.status_code, error.headers, MEDIA_TYPES[style])


def _unexpected(request: Request) -> ServiceError:
    request_id = getattr(request.state, "request_id", "-")
    log.exception("request %s: %s %s failed", request_id, request.method, request.scope["path"])
    return ServiceError(f"the service could not answer; the operator's log has the cause under request {request_id}")
