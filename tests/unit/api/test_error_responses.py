"""From error to answer, in both styles."""

from collections.abc import AsyncGenerator, Awaitable, Callable

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.api.error_responses import ErrorMiddleware
from serve.errors import EngineFailed, NotFound, NotReady, PoolFull, Unauthenticated
from tests.logs import Logs

STYLES = ["/v1/here", "/here"]


class RequestIds:
    """Stands for what gives ids to requests, inside of the table."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["request_id"] = "request-1"
        await self._app(scope, receive, send)


async def answered(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> httpx.Response:
    app = Starlette(routes=[Route(path, endpoint)], middleware=[Middleware(ErrorMiddleware), Middleware(RequestIds)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        return await client.get(path)


def raising(error: Exception) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        raise error

    return endpoint


class Wrapper(NotReady):
    """An error as it comes through a handle: its text is a traceback, the original its `cause`."""

    cause = PoolFull("schnell", 2.4)

    def __str__(self) -> str:
        return "Traceback: 10.0.0.1"


@pytest.mark.parametrize("path", STYLES)
@pytest.mark.parametrize(
    ("error", "status", "text", "headers"),
    [
        (NotFound("there is no such thing"), 404, "there is no such thing", {}),
        (NotReady("the service is stopping"), 503, "the service is stopping", {}),
        (PoolFull("schnell", 2.4), 429, "the pool 'schnell' is full, try again in 2.4 s", {"Retry-After": "3"}),
        (Wrapper("x"), 429, "the pool 'schnell' is full, try again in 2.4 s", {"Retry-After": "3"}),
        (EngineFailed(), 500, "the image engine failed; the operator's log has the cause", {}),
        (
            Unauthenticated(),
            401,
            "You did not pass a valid authentication token",
            {"WWW-Authenticate": "Bearer"},
        ),
    ],
)
async def test_an_error_of_ours_answers_with_its_status_and_its_sentence(
    path: str, error: Exception, status: int, text: str, headers: dict[str, str]
) -> None:
    answer = await answered(path, raising(error))
    assert answer.status_code == status
    assert answer.json()["detail"] == text
    assert {name: answer.headers.get(name) for name in headers} == headers
    assert ("Retry-After" in answer.headers) == ("Retry-After" in headers)


async def test_problems_have_a_type_of_their_own() -> None:
    answer = await answered("/v1/here", raising(Unauthenticated()))
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json() == {
        "title": "Unauthenticated",
        "detail": "You did not pass a valid authentication token",
        "status": 401,
    }


@pytest.mark.parametrize("path", STYLES)
async def test_any_other_error_tells_only_the_id_of_the_request(path: str, logs: Logs) -> None:
    answer = await answered(path, raising(RuntimeError("secret at 10.0.0.1")))
    assert answer.status_code == 500
    assert "request-1" in answer.json()["detail"]
    assert answer.headers["X-Request-ID"] == "request-1"
    assert "secret" not in answer.text
    [logged] = logs.errors
    assert "request-1" in logged.getMessage()
    assert logged.exc_info is not None
    assert "secret" in str(logged.exc_info[1])


async def test_a_client_that_left_is_no_error(logs: Logs) -> None:
    assert (await answered("/here", raising(ClientDisconnect()))).status_code == 499
    assert logs.records == []


async def test_an_error_after_the_answer_began_is_not_answered_again() -> None:
    async def endpoint(request: Request) -> Response:
        async def broken() -> AsyncGenerator[bytes, None]:
            yield b"half of"
            raise NotFound("too late")

        return StreamingResponse(broken())

    with pytest.raises(NotFound, match="too late"):
        await answered("/here", endpoint)
