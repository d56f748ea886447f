"""Tokens and their scopes, requests a minute, request ids, and the check of the bind address."""

from collections.abc import Mapping

import httpx
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve import logs, telemetry
from serve.access.access_control import AccessControl
from serve.access.caller import Scope
from serve.access.request_counter import RequestCounter
from serve.api.auth import AuthMiddleware, RateHeadersMiddleware, check_bind_address
from serve.api.error_responses import ErrorMiddleware
from serve.database.connection import Database
from tests.access import add_token
from tests.fakes import FakeClock
from tests.metrics import RecordedMetrics

METHODS = ("GET", "HEAD", "QUERY", "POST", "PUT", "DELETE")
PATHS = ("/v1/id", "/predictions", "/v1/images/generations")


class Harness:
    """An endpoint behind `AuthMiddleware` that responds with the request id and the caller."""

    def __init__(self, database: Database, requires_token: bool = True) -> None:
        self.database = database
        self.clock = FakeClock(6000)
        access = AccessControl(SecretStr("secret"), database, RequestCounter(database, self.clock), self.clock)
        auth = Middleware(AuthMiddleware, access=access if requires_token else None)
        self._app = Starlette(
            routes=[Route("/{path:path}", endpoint, methods=METHODS)],
            middleware=[Middleware(RateHeadersMiddleware), Middleware(ErrorMiddleware), auth],
        )

    async def request(self, headers: Mapping[str, str], path: str = "/v1/id", method: str = "GET") -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://service") as client:
            return await client.request(method, path, headers=headers)


async def endpoint(request: Request) -> JSONResponse:
    assert logs.request_id.get() == request.state.request_id
    caller = request.state.caller
    return JSONResponse({"id": request.state.request_id, "owner": caller.owner, "scope": caller.scope})


@pytest.fixture
def harness(database: Database) -> Harness:
    return Harness(database)


async def test_token_sets_the_caller(harness: Harness) -> None:
    token, headers = await add_token(harness.database, "read")
    own, operators = await harness.request(headers), await harness.request({"Authorization": "Bearer secret"})
    assert (own.json()["owner"], own.json()["scope"]) == (token.id, "read")
    assert (operators.json()["owner"], operators.json()["scope"]) == ("", "admin")


@pytest.mark.parametrize("authorization", [None, "", "Bearer wrong", f"Bearer flux_{'0' * 16}_{'x' * 43}"])
@pytest.mark.parametrize("path", ["/v1/id", "/openapi.json", "/health-check/x", "/v1/health-check"])
async def test_missing_or_wrong_token_is_rejected_with_401(
    harness: Harness, authorization: str | None, path: str
) -> None:
    response = await harness.request({} if authorization is None else {"Authorization": authorization}, path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert "token" in response.json()["detail"]


@pytest.mark.parametrize("path", ["/health-check", "/readyz"])
async def test_probes_need_no_token(harness: Harness, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert (await harness.request(headers, path)).status_code == 200


async def test_every_caller_is_the_operator_if_no_token_is_required(database: Database) -> None:
    harness = Harness(database, requires_token=False)
    _, headers = await add_token(database, "read")
    for each in ({}, headers, {"Authorization": "Bearer wrong"}):
        response = await harness.request(each, method="POST")
        assert (response.json()["owner"], response.json()["scope"]) == ("", "admin")


@pytest.mark.parametrize(
    ("scope", "method", "path", "status"),
    [
        ("read", "GET", "/v1/id", 200),
        ("read", "HEAD", "/v1/id", 200),
        ("read", "QUERY", "/v1/id", 200),
        ("read", "POST", "/v1/id", 403),
        ("read", "PUT", "/v1/id", 403),
        ("read", "DELETE", "/v1/id", 403),
        ("run", "GET", "/v1/id", 200),
        ("run", "POST", "/v1/id", 200),
        ("run", "DELETE", "/v1/id", 200),
        ("run", "POST", "/shutdown", 403),
        ("admin", "POST", "/shutdown", 200),
    ],
)
async def test_scope_limits_methods(harness: Harness, scope: Scope, method: str, path: str, status: int) -> None:
    _, headers = await add_token(harness.database, scope)
    assert (await harness.request(headers, path, method)).status_code == status


@pytest.mark.parametrize("path", PATHS)
async def test_requests_above_the_limit_are_rejected_with_429(
    harness: Harness, path: str, metrics: RecordedMetrics
) -> None:
    _, headers = await add_token(harness.database, requests_per_minute=2)
    responses = [await harness.request(headers, path) for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 200, 429]
    assert metrics.value(telemetry.RATE_LIMITED) == 1
    assert [response.headers["ratelimit-limit"] for response in responses] == ["2"] * 3
    assert [response.headers["ratelimit-remaining"] for response in responses] == ["1", "0", "0"]
    assert [response.headers["ratelimit-reset"] for response in responses] == ["60", "90", "90"]
    assert responses[2].headers["retry-after"] == "90"
    harness.clock.elapsed_s += 90
    assert (await harness.request(headers, path)).status_code == 200


async def test_429_has_the_form_of_each_api(harness: Harness) -> None:
    _, headers = await add_token(harness.database, requests_per_minute=1)
    await harness.request(headers)
    replicate, cog, openai = [(await harness.request(headers, path)).json() for path in PATHS]
    assert (replicate["status"], replicate["retry_after"]) == (429, 120)
    assert "120 s" in cog["detail"]
    assert openai["error"]["code"] == "rate_limit_exceeded"


async def test_limits_are_those_of_each_token(harness: Harness) -> None:
    _, first = await add_token(harness.database, requests_per_minute=1)
    _, second = await add_token(harness.database, requests_per_minute=1)
    _, unlimited = await add_token(harness.database)
    for headers in (first, second, unlimited, unlimited):
        assert (await harness.request(headers)).status_code == 200
    assert "ratelimit-limit" not in (await harness.request(unlimited)).headers
    assert (await harness.request(first)).status_code == 429
    assert (await harness.request(first, "/readyz")).status_code == 200


async def test_rejected_requests_do_not_use_up_the_limit(harness: Harness) -> None:
    _, headers = await add_token(harness.database, "read", requests_per_minute=1)
    assert (await harness.request(headers, method="POST")).status_code == 403
    assert (await harness.request(headers)).status_code == 200


@pytest.mark.parametrize(("sent", "accepted"), [("abc-1", True), ("a b", False), ("x" * 65, False), ("", False)])
async def test_unsafe_request_id_is_replaced(database: Database, sent: str, accepted: bool) -> None:
    harness = Harness(database, requires_token=False)
    request_id = (await harness.request({"X-Request-ID": sent})).json()["id"]
    assert (request_id == sent) is accepted
    assert request_id


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    check_bind_address(host, requires_token=False, allow_unauthenticated=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.com"])
def test_other_addresses_need_a_token_or_allow_unauthenticated(host: str) -> None:
    check_bind_address(host, requires_token=True, allow_unauthenticated=False)
    check_bind_address(host, requires_token=False, allow_unauthenticated=True)
    with pytest.raises(ValueError, match="FLUX_SERVE_TOKEN"):
        check_bind_address(host, requires_token=False, allow_unauthenticated=False)
