"""Token authentication, request ids, and the check of the bind address."""

import httpx
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve import logs
from serve.api.auth import AuthMiddleware, check_bind_address
from serve.api.error_responses import ErrorMiddleware


async def get(headers: dict[str, str], token: str | None = "sésame", path: str = "/v1/id") -> httpx.Response:
    """Calls an endpoint behind `AuthMiddleware` that responds with the request id."""

    async def request_id(request: Request) -> JSONResponse:
        assert logs.request_id.get() == request.state.request_id
        return JSONResponse(request.state.request_id)

    auth = Middleware(AuthMiddleware, token=SecretStr(token) if token else None)
    app = Starlette(routes=[Route(path, request_id)], middleware=[Middleware(ErrorMiddleware), auth])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "Token"])
async def test_correct_token_is_accepted(scheme: str) -> None:
    assert (await get({"Authorization": f"{scheme} right"}, token="right")).status_code == 200


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic right", "right", "Bearer right right"]
)
@pytest.mark.parametrize("path", ["/v1/id", "/openapi.json", "/health-check/x", "/v1/health-check"])
async def test_missing_or_wrong_token_is_rejected_with_401(authorization: str | None, path: str) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = await get(headers, token="right", path=path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert "token" in response.json()["detail"]


@pytest.mark.parametrize("path", ["/health-check", "/readyz"])
async def test_probes_need_no_token(path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert (await get(headers, token="right", path=path)).status_code == 200


async def test_no_token_is_required_if_none_is_set() -> None:
    assert (await get({}, token=None)).status_code == 200


@pytest.mark.parametrize(("sent", "accepted"), [("abc-1", True), ("a b", False), ("x" * 65, False), ("", False)])
async def test_unsafe_request_id_is_replaced(sent: str, accepted: bool) -> None:
    request_id = (await get({"X-Request-ID": sent}, token=None)).json()
    assert (request_id == sent) is accepted
    assert request_id


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    check_bind_address(host, has_token=False, allow_unauthenticated=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.com"])
def test_other_addresses_need_a_token_or_allow_unauthenticated(host: str) -> None:
    check_bind_address(host, has_token=True, allow_unauthenticated=False)
    check_bind_address(host, has_token=False, allow_unauthenticated=True)
    with pytest.raises(ValueError, match="FLUX_SERVE_TOKEN"):
        check_bind_address(host, has_token=False, allow_unauthenticated=False)
