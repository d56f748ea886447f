"""The fields of a request body that name a webhook."""

from collections.abc import Mapping
from typing import Any

from serve.api.http_messages import InvalidBody
from serve.errors import FieldError
from serve.net.http_client import origin
from serve.net.url import InvalidUrl, parse_url
from serve.predictions.webhook import WEBHOOK_EVENTS, Webhook, WebhookApi

WEBHOOK_KEYS: dict[str, type] = {"webhook": str, "webhook_events_filter": list}
MAX_URL_CHARS = 2000
EVENT_LIST = ", ".join(WEBHOOK_EVENTS)


def parse_webhook(body: Mapping[str, Any], api: WebhookApi) -> Webhook | None:
    """The webhook of a body whose keys were checked; None without one, or if it gets no events.

    Raises `InvalidBody`.
    """
    url, events = body.get("webhook"), body.get("webhook_events_filter")
    errors = []
    unknown = [event for event in events or () if event not in WEBHOOK_EVENTS]
    if unknown:
        errors.append(FieldError("webhook_events_filter", f"Input should have only {EVENT_LIST}", "enum"))
    if url is not None and (reason := why_invalid(url)):
        errors.append(FieldError("webhook", f"is not accepted: {reason}", "url"))
    if errors:
        raise InvalidBody(tuple(errors))
    wanted = tuple(event for event in WEBHOOK_EVENTS if events is None or event in events)
    if url is None or not wanted:
        return None
    parsed = parse_url(url)
    _, host, port = origin(parsed)
    return Webhook(url=str(parsed), host=f"{host}:{port}", events=wanted, api=api)


def why_invalid(url: str) -> str | None:
    """Why requests cannot be sent to a URL of a caller; None if they can."""
    if len(url) > MAX_URL_CHARS:
        return f"it has more than {MAX_URL_CHARS} characters"
    try:
        parse_url(url)
    except InvalidUrl as error:
        return str(error)
    return None
