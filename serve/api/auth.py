"""Bearer-token authentication and request ids."""

import hmac
import ipaddress
import re
import uuid

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve import logs
from serve.api import playground
from serve.errors import Unauthenticated
from serve.media.links import PREFIX as LINKS

REQUEST_ID_HEADER = "x-request-id"

_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCHEMES = ("bearer", "token")
PUBLIC_PATHS = frozenset({"/health-check", "/readyz"})
"""Probes of load balancers, which have no token."""


class AuthMiddleware:
    """ASGI middleware that sets `request.state.request_id` and checks the token, if `token` is set.

    Raises `Unauthenticated`, which `ErrorMiddleware` turns into a response.
    """

    def __init__(self, app: ASGIApp, token: SecretStr | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Serve's proxy gives every request an id and adds it to the response.
        request_id = _request_id(headers.get(REQUEST_ID_HEADER))
        scope.setdefault("state", {})["request_id"] = request_id
        logs.request_id.set(request_id)
        if not self._is_allowed(scope["path"], headers):
            raise Unauthenticated
        await self._app(scope, receive, send)

    def _is_allowed(self, path: str, headers: Headers) -> bool:
        # The routes of links check their signatures.
        is_public = path in PUBLIC_PATHS or path.startswith(LINKS) or playground.is_public(path, headers.get("accept"))
        return self._token is None or is_public or _is_valid(headers.get("authorization"), self._token)


def check_bind_address(host: str, has_token: bool, allow_unauthenticated: bool) -> None:
    """Raises ValueError if `host` is not loopback, no token is set, and `allow_unauthenticated` is false."""
    if has_token or allow_unauthenticated or _is_loopback(host):
        return
    raise ValueError(
        f"{host} can be reached from other machines: set FLUX_SERVE_TOKEN to a secret,"
        " or allow_unauthenticated=true if something else authenticates requests"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _request_id(value: str | None) -> str:
    """The client's id if it is safe to write to logs, otherwise a new one."""
    return value if value and _SAFE_REQUEST_ID.fullmatch(value) else uuid.uuid4().hex


def _is_valid(header: str | None, token: SecretStr) -> bool:
    scheme, _, credentials = (header or "").partition(" ")
    matches = hmac.compare_digest(credentials.strip().encode(), token.get_secret_value().encode())
    return scheme.lower() in _SCHEMES and matches
