"""Composes and sends one webhook."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http.client import responses
from typing import Any

from serve.net.http_client import REDIRECT_STATUSES, HttpClient, RequestFailed
from serve.net.url import parse_url
from serve.predictions.prediction import Prediction, utc_now
from serve.predictions.webhook import Webhook
from serve.webhooks.signatures import signature_headers
from serve.webhooks.signing_secrets import SigningSecrets

Render = Callable[[Webhook, Prediction], Awaitable[Mapping[str, Any]]]
"""The prediction object of the webhook's API."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    url: str
    headers: Mapping[str, str]
    body: bytes


class WebhookSender:
    """`total_timeout_s` limits each request."""

    def __init__(
        self,
        client: HttpClient,
        secrets: SigningSecrets,
        render: Render,
        total_timeout_s: float,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._client = client
        self._secrets = secrets
        self._render = render
        self._clock = clock
        self.total_timeout_s = total_timeout_s

    async def compose(self, webhook: Webhook, prediction: Prediction, message_id: str) -> Message | None:
        """The signed message with the state of a prediction; None after an internal error, which is logged.

        Raises `DatabaseUnavailable`.
        """
        try:
            body = json.dumps(await self._render(webhook, prediction)).encode()
        except Exception:
            log.exception("prediction %s: its webhook could not be composed", prediction.id)
            return None
        timestamp_s = int(self._clock().timestamp())
        secrets = await self._secrets.valid(prediction.owner)
        headers = signature_headers(secrets, message_id, timestamp_s, body)
        return Message(webhook.url, {"Content-Type": "application/json", **headers}, body)

    async def send(self, message: Message) -> str | None:
        """Sends a message. Returns None if the receiver has accepted it, and otherwise the reason, without the URL."""
        try:
            async with asyncio.timeout(self.total_timeout_s):
                status = await self._client.post(parse_url(message.url), message.body, message.headers)
        except TimeoutError:
            return f"its server did not answer within {self.total_timeout_s:g} s"
        except RequestFailed as error:
            return error.reason
        if 200 <= status < 300:
            return None
        hint = "; redirects are not followed" if status in REDIRECT_STATUSES else ""
        return f"its server answered {status} {responses.get(status, '')}".rstrip() + hint

    def close(self) -> None:
        self._client.close()
