"""Request ids, and what the token of a request allows."""

import ipaddress
import math
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import logs, telemetry
from serve.access.access_control import AccessControl
from serve.access.caller import ANONYMOUS, OPERATOR, Caller
from serve.access.caller import Scope as TokenScope
from serve.access.request_rate import RateState
from serve.api import playground
from serve.errors import RateLimited
from serve.media.links import PREFIX as LINKS

REQUEST_ID_HEADER = "x-request-id"
RATE_HEADERS = ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset")
PUBLIC_PATHS = frozenset({"/health-check", "/readyz"})
"""Probes of load balancers, which have no token."""
ADMIN_PATHS = frozenset({"/shutdown"})
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "QUERY"})

_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class AuthMiddleware:
    """ASGI middleware that sets `request.state.request_id` and `request.state.caller`.

    It checks the token and counts the request, unless `access` is None. Raises `Unauthenticated`, `NotPermitted`,
    `RateLimited` and `DatabaseUnavailable`, which `ErrorMiddleware` turns into responses.
    """

    def __init__(self, app: ASGIApp, access: AccessControl | None) -> None:
        self._app = app
        self._access = access
        telemetry.RATE_LIMITED.add(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, state = Headers(scope=scope), scope.setdefault("state", {})
        # Serve's proxy gives every request an id and adds it to the response.
        request_id = _request_id(headers.get(REQUEST_ID_HEADER))
        state["request_id"] = request_id
        logs.request_id.set(request_id)
        if self._access is None:
            state["caller"] = OPERATOR
        elif _is_public(scope["path"], headers.get("accept")):
            state["caller"] = ANONYMOUS
        else:
            state["caller"] = caller = await self._access.find_caller(headers.get("authorization"))
            caller.check_scope(_needed_scope(scope["method"], scope["path"]))
            state["rate"] = rate = self._access.count_request(caller)
            if rate is not None and not rate.allowed:
                telemetry.RATE_LIMITED.add()
                raise RateLimited(rate.limit, rate.reset_s)
        await self._app(scope, receive, send)


class RateHeadersMiddleware:
    """ASGI middleware outside of `ErrorMiddleware` that adds the token's requests a minute to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})

        async def send_with_headers(message: Message) -> None:
            rate: RateState | None = state.get("rate")
            if message["type"] == "http.response.start" and rate is not None:
                values = rate.limit, rate.remaining, math.ceil(rate.reset_s)
                MutableHeaders(scope=message).update(dict(zip(RATE_HEADERS, map(str, values), strict=True)))
            await send(message)

        await self._app(scope, receive, send_with_headers)


def caller_of(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def check_bind_address(host: str, requires_token: bool, allow_unauthenticated: bool) -> None:
    """Raises ValueError if `host` is not loopback, no token is required, and `allow_unauthenticated` is false."""
    if requires_token or allow_unauthenticated or _is_loopback(host):
        return
    raise ValueError(
        f"{host} can be reached from other machines: set FLUX_SERVE_TOKEN to a secret, or require_token=true if all"
        " callers have tokens of their own, or allow_unauthenticated=true if something else authenticates requests"
    )


def _is_public(path: str, accept: str | None) -> bool:
    # The routes of links check their signatures.
    return path in PUBLIC_PATHS or path.startswith(LINKS) or playground.is_public(path, accept)


def _needed_scope(method: str, path: str) -> TokenScope:
    if path in ADMIN_PATHS:
        return "admin"
    return "read" if method in READING_METHODS else "run"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _request_id(value: str | None) -> str:
    """The client's id if it is safe to write to logs, otherwise a new one."""
    return value if value and _SAFE_REQUEST_ID.fullmatch(value) else uuid.uuid4().hex
