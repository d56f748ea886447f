"""Signs of life that the ingress sends to Serve's proxy while a request has no response yet."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_HEADER = b"x-flux-serve-signs-of-life"
"""The proxy adds it to requests. Without it, the server may not know the message `ALIVE`."""
ALIVE: Message = {"type": "flux_serve.alive"}
PERIOD_S = 5.0
SILENCE_LIMIT_S = 20.0
"""If the proxy gets no sign of life for this long, the ingress is lost or hangs, or there is none yet."""


class SignsOfLifeMiddleware:
    """ASGI middleware of the ingress, where a request may rightly wait for its response for minutes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or all(name != REQUEST_HEADER for name, _ in scope["headers"]):
            await self._app(scope, receive, send)
            return
        signs = asyncio.create_task(_send_signs(send))

        async def send_response(message: Message) -> None:
            signs.cancel()
            await send(message)

        try:
            await self._app(scope, receive, send_response)
        finally:
            signs.cancel()


async def _send_signs(send: Send) -> None:
    while True:
        await asyncio.sleep(PERIOD_S)
        await send(ALIVE)
