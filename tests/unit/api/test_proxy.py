"""What the service adds to Serve's proxy."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import telemetry
from serve.api import proxy
from serve.api.proxy import ProxyErrorMiddleware, _Response
from serve.api.signs_of_life import ALIVE, REQUEST_HEADER
from tests.metrics import RecordedMetrics


async def no_response(scope: Scope, receive: Receive, send: Send) -> None:
    """As Serve's proxy does if the ingress dies before it responds."""


async def get(app: ASGIApp, path: str = "/v1/predictions") -> httpx.Response:
    transport = httpx.ASGITransport(ProxyErrorMiddleware(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        return await client.get(path)


@pytest.mark.parametrize(
    ("path", "key"), [("/v1/predictions", "title"), ("/predictions", "detail"), ("/v1/images/generations", "error")]
)
async def test_lost_ingress_is_503_with_retry_after_in_the_form_of_each_api(
    path: str, key: str, metrics: RecordedMetrics
) -> None:
    response = await get(no_response, path)
    assert metrics.value(telemetry.INGRESS_LOST) == 1
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert key in response.json()


async def wait_forever(scope: Scope, receive: Receive, send: Send) -> None:
    """As Serve's proxy does if no ingress takes the request, or if the ingress hangs."""
    await asyncio.Event().wait()


async def wait_and_respond_to_the_cancellation(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await wait_forever(scope, receive, send)
    except asyncio.CancelledError:
        await PlainTextResponse("Internal Server Error", 500)(scope, receive, send)


@pytest.mark.parametrize("app", [wait_forever, wait_and_respond_to_the_cancellation])
async def test_silent_ingress_is_503_with_retry_after(monkeypatch: pytest.MonkeyPatch, app: ASGIApp) -> None:
    monkeypatch.setattr(proxy, "SILENCE_LIMIT_S", 0.01)
    response = await get(app)
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert "title" in response.json()


async def test_signs_of_life_are_not_sent_to_the_client() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (REQUEST_HEADER, b"1") in scope["headers"]
        await send(ALIVE)
        await JSONResponse("late")(scope, receive, send)

    assert (await get(app)).json() == "late"


async def test_sign_of_life_extends_the_limit_of_the_beginning_of_a_response() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(1) as limit:
        response, before_s = _Response(send, limit), limit.when()
        await response.send(ALIVE)
        extended_s = limit.when()
        await response.send({"type": "http.response.start", "status": 200, "headers": []})
        assert before_s is not None
        assert extended_s is not None
        assert extended_s > before_s
        assert limit.when() is None
    assert [message["type"] for message in sent] == ["http.response.start"]


@pytest.mark.parametrize(("own", "status"), [(404, 503), (503, 503), (429, 503), (500, 503), (408, 408)])
async def test_text_errors_of_the_proxy_become_errors_of_the_api(own: int, status: int) -> None:
    response = await get(PlainTextResponse("Path '/' not found.", own))
    assert response.status_code == status
    assert "status" in response.json()


@pytest.mark.parametrize(
    "response",
    [
        JSONResponse({"detail": "no"}, 404),
        JSONResponse({"title": "no"}, 503, media_type="application/problem+json"),
        PlainTextResponse("fine"),
        Response(status_code=499),
    ],
)
async def test_responses_of_the_ingress_pass_unchanged(response: Response, metrics: RecordedMetrics) -> None:
    passed = await get(response)
    assert metrics.value(telemetry.INGRESS_LOST) == 0
    assert (passed.status_code, passed.content) == (response.status_code, response.body)


async def test_headers_for_serve_are_removed() -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse([name.decode() for name, _ in scope["headers"]])(scope, receive, send)

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(ProxyErrorMiddleware(echo)), base_url="http://service"
    ) as client:
        headers = {"X-Request-Timeout-Seconds": "1", "X-Request-Disconnect-Disabled": "?1", "Prefer": "wait"}
        names = (await client.get("/", headers=headers)).json()
    assert "prefer" in names
    assert not {"x-request-timeout-seconds", "x-request-disconnect-disabled"} & set(names)


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes"])
async def test_serves_own_endpoints_pass_unchanged(path: str) -> None:
    assert (await get(PlainTextResponse("draining", 503), path)).text == "draining"


async def test_websockets_pass_unchanged() -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    unused: Any = None
    await ProxyErrorMiddleware(app)({"type": "websocket", "path": "/"}, unused, unused)
    assert scopes
