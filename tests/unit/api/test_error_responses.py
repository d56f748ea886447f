"""Errors become HTTP responses, in the formats of both APIs."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.api.error_responses import ErrorMiddleware
from serve.api.http_messages import InvalidBody, InvalidHeader, InvalidQuery
from serve.errors import (
    DatabaseUnavailable,
    EngineFailed,
    FieldError,
    InvalidInput,
    NotFound,
    NotReady,
    PoolFull,
    Unauthenticated,
)
from tests.logs import Logs

PATHS = ["/v1/path", "/path"]


class RequestIds:
    """Inner middleware that sets the request id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["request_id"] = "request-1"
        await self._app(scope, receive, send)


async def get(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> httpx.Response:
    app = Starlette(routes=[Route(path, endpoint)], middleware=[Middleware(ErrorMiddleware), Middleware(RequestIds)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        return await client.get(quote(path))


def raising(error: Exception) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        raise error

    return endpoint


class WrappedError(NotReady):
    """An error as Ray wraps it: the text is a traceback, and `cause` is the original error."""

    cause = PoolFull("schnell", 2.4)

    def __str__(self) -> str:
        return "Traceback: 10.0.0.1"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("error", "status", "detail", "headers"),
    [
        (NotFound("there is no such thing"), 404, "there is no such thing", {}),
        (NotReady("the service is stopping"), 503, "the service is stopping", {"Retry-After": "5"}),
        (PoolFull("schnell", 2.4), 429, str(PoolFull("schnell", 2.4)), {"Retry-After": "3"}),
        (WrappedError("x"), 429, str(PoolFull("schnell", 2.4)), {"Retry-After": "3"}),
        (EngineFailed(), 500, str(EngineFailed()), {}),
        (Unauthenticated(), 401, str(Unauthenticated()), {"WWW-Authenticate": "Bearer"}),
    ],
)
async def test_service_error_responds_with_its_status_and_message(
    path: str, error: Exception, status: int, detail: str, headers: dict[str, str]
) -> None:
    response = await get(path, raising(error))
    assert response.status_code == status
    assert response.json()["detail"] == detail
    assert {name: response.headers.get(name) for name in headers} == headers
    assert ("Retry-After" in response.headers) == ("Retry-After" in headers)


@pytest.mark.parametrize(
    ("error_type", "field", "location"),
    [
        (InvalidInput, "input.x", ["body", "input", "x"]),
        (InvalidBody, "x", ["body", "x"]),
        (InvalidHeader, "x", ["header", "x"]),
        (InvalidQuery, "x", ["query", "x"]),
    ],
)
async def test_invalid_field_is_located(error_type: type[InvalidInput], field: str, location: list[str]) -> None:
    error = error_type((FieldError("x", "is wrong"),))
    replicate, cog = [(await get(path, raising(error))).json() for path in PATHS]
    assert [each["field"] for each in replicate["invalid_fields"]] == [field]
    assert [each["loc"] for each in cog["detail"]] == [location]


async def test_replicate_api_responds_with_problem_json() -> None:
    response = await get("/v1/path", raising(Unauthenticated()))
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json() == {"title": "Unauthenticated", "detail": str(Unauthenticated()), "status": 401}


@pytest.mark.parametrize("path", PATHS)
async def test_unexpected_error_is_logged_and_responds_with_the_request_id_only(path: str, logs: Logs) -> None:
    response = await get(path, raising(RuntimeError("secret at 10.0.0.1")))
    assert response.status_code == 500
    assert "request-1" in response.json()["detail"]
    assert "X-Request-ID" not in response.headers, "Serve's proxy adds it"
    assert "secret" not in response.text
    [record] = logs.errors
    assert "request-1" in record.getMessage()
    assert record.exc_info is not None
    assert "secret" in str(record.exc_info[1])


@pytest.mark.parametrize("path", PATHS)
async def test_cause_of_an_unavailable_database_is_only_in_the_log(path: str, logs: Logs) -> None:
    response = await get(path, raising(DatabaseUnavailable("refused by 10.0.0.1")))
    assert response.status_code == 503
    assert "10.0.0.1" not in response.text
    [record] = logs.records
    assert record.levelno == logging.WARNING
    assert "request-1" in record.getMessage()
    assert "10.0.0.1" in record.getMessage()


async def test_line_break_in_a_path_is_escaped_in_the_log(logs: Logs) -> None:
    await get("/v1/a\nERROR", raising(RuntimeError("secret")))
    [record] = logs.errors
    assert "\n" not in record.getMessage()


async def test_client_disconnect_is_not_logged(logs: Logs) -> None:
    assert (await get("/path", raising(ClientDisconnect()))).status_code == 499
    assert logs.records == []


async def test_error_after_the_response_has_started_is_raised() -> None:
    async def endpoint(request: Request) -> Response:
        async def failing_body() -> AsyncGenerator[bytes, None]:
            yield b"half of"
            raise NotFound("too late")

        return StreamingResponse(failing_body())

    with pytest.raises(NotFound, match="late"):
        await get("/path", endpoint)
