"""A receiver of webhooks on a loopback port."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.asgi_server import listening


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.content)
        return decoded


class WebhookReceiver:
    """Answers with each of `statuses` in turn; the last one is repeated."""

    def __init__(self, statuses: Sequence[int] = (200,)) -> None:
        self.statuses = list(statuses)
        self.received: list[Received] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.url = ""
        self._arrived = asyncio.Condition()

    async def wait_for(self, count: int) -> list[Received]:
        """The requests once there are `count` of them. Raises `TimeoutError` after 5 seconds."""
        async with asyncio.timeout(5), self._arrived:
            await self._arrived.wait_for(lambda: len(self.received) >= count)
        return self.received

    async def answer(self, request: Request) -> Response:
        content = await request.body()
        async with self._arrived:
            self.received.append(Received(request.url.path, dict(request.headers), content))
            self._arrived.notify_all()
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        await self.may_answer.wait()
        return Response(status_code=status, headers={"Location": f"{self.url}/elsewhere"} if status == 302 else {})


@asynccontextmanager
async def webhook_receiver(statuses: Sequence[int] = (200,)) -> AsyncGenerator[WebhookReceiver, None]:
    receiver = WebhookReceiver(statuses)
    app = Starlette(routes=[Route("/{path:path}", receiver.answer, methods=["POST", "GET"])])
    async with listening(app) as url:
        receiver.url = url
        try:
            yield receiver
        finally:
            receiver.may_answer.set()
