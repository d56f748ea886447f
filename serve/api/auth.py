"""Bearer-token authentication and request ids."""

import hmac
import ipaddress
import re
import uuid

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import Unauthenticated

REQUEST_ID = "x-request-id"

_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCHEMES = ("bearer", "token")


class AuthMiddleware:
    """ASGI middleware. An `Unauthenticated` it raises is answered by the face's own error table."""

    def __init__(self, app: ASGIApp, token: SecretStr | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Serve's proxy gives every request an id, and puts it on the answer.
        scope.setdefault("state", {})["request_id"] = _request_id(headers.get(REQUEST_ID))
        if self._token is not None and not _knows(self._token, headers.get("authorization")):
            raise Unauthenticated
        await self._app(scope, receive, send)


def check_bind_address(host: str, guarded: bool, forced: bool) -> None:
    """Raises ValueError when `host` can be reached from other machines and nothing guards the service there."""
    if guarded or forced or _is_loopback(host):
        return
    raise ValueError(
        f"{host} can be reached from other machines: set FLUX_SERVE_TOKEN to a secret,"
        " or allow_unauthenticated when something else guards it"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _request_id(given: str | None) -> str:
    """The client's own id where it is plain: it is written to logs."""
    return given if given and _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex


def _knows(token: SecretStr, header: str | None) -> bool:
    scheme, _, credentials = (header or "").partition(" ")
    right = hmac.compare_digest(credentials.strip().encode(), token.get_secret_value().encode())
    return scheme.lower() in _SCHEMES and right
