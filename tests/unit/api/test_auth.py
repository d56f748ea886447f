"""The door: who may pass when a token is set, what is taken for a request id, and who may listen without a token."""

import httpx
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve.api.auth import AuthMiddleware, check_bind_address
from serve.api.error_responses import ErrorMiddleware


async def ask(headers: dict[str, str], token: str | None = "sésame", path: str = "/v1/id") -> httpx.Response:
    async def told(request: Request) -> JSONResponse:
        return JSONResponse(request.state.request_id)

    door = Middleware(AuthMiddleware, token=SecretStr(token) if token else None)
    app = Starlette(routes=[Route(path, told)], middleware=[Middleware(ErrorMiddleware), door])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "Token"])
async def test_the_token_opens_the_door(scheme: str) -> None:
    assert (await ask({"Authorization": f"{scheme} open"}, token="open")).status_code == 200


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer shut", "Basic open", "open", "Bearer open open"]
)
@pytest.mark.parametrize("path", ["/v1/id", "/health-check"])
async def test_anything_else_does_not(authorization: str | None, path: str) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await ask(headers, token="open", path=path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["detail"] == "You did not pass a valid authentication token"


async def test_without_a_token_everybody_passes() -> None:
    assert (await ask({}, token=None)).status_code == 200


@pytest.mark.parametrize(("given", "kept"), [("abc-1", True), ("a b", False), ("x" * 65, False), ("", False)])
async def test_a_plain_request_id_is_kept_and_any_other_is_replaced(given: str, kept: bool) -> None:
    answer = (await ask({"X-Request-ID": given}, token=None)).json()
    assert (answer == given) is kept
    assert answer


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    check_bind_address(host, guarded=False, forced=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.com"])
def test_any_other_address_does(host: str) -> None:
    check_bind_address(host, guarded=True, forced=False)
    check_bind_address(host, guarded=False, forced=True)
    with pytest.raises(ValueError, match="FLUX_SERVE_TOKEN"):
        check_bind_address(host, guarded=False, forced=False)
