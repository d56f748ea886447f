"""The webhook of a prediction: where its events are sent."""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

WebhookEvent = Literal["start", "output", "logs", "completed"]
WEBHOOK_EVENTS: tuple[WebhookEvent, ...] = get_args(WebhookEvent)
WebhookApi = Literal["replicate", "cog"]


class Webhook(BaseModel):
    """JSON-serializable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    host: str
    """Host and port of `url`, in one spelling. A limited number of requests is sent to each host at once."""
    events: tuple[WebhookEvent, ...]
    """Never empty."""
    api: WebhookApi
    """The API whose prediction object is sent."""
