"""The fields of a request body of the Cog API beside its `input`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from serve.access.caller import Caller
from serve.api.http_messages import InvalidBody
from serve.api.webhook_fields import WEBHOOK_KEYS, parse_webhook, why_invalid
from serve.errors import FieldError
from serve.media.output_store import PREDICTION_ID
from serve.predictions.create_options import CreateOptions
from serve.settings import Settings

KEYS: dict[str, type] = {
    "input": dict,
    "id": str,
    "created_at": str,
    "context": dict,
    "output_file_prefix": str,
} | WEBHOOK_KEYS
"""`created_at` and `context` are for other models: Cog passes the context to the model's code."""


def create_options(body: Mapping[str, Any], caller: Caller, settings: Settings) -> CreateOptions:
    """The options of a body whose keys were checked. Raises `InvalidBody`."""
    errors = []
    prediction_id, prefix, created_at = body.get("id"), body.get("output_file_prefix"), body.get("created_at")
    if prediction_id is not None and not PREDICTION_ID.fullmatch(prediction_id):
        message = "should have 1 to 100 letters, digits, hyphens and underscores"
        errors.append(FieldError("id", message, "string_pattern_mismatch"))
    if prefix is not None and (reason := why_invalid(prefix)):
        errors.append(FieldError("output_file_prefix", f"is not accepted: {reason}", "url"))
    if created_at is not None and not _is_time(created_at):
        errors.append(FieldError("created_at", "should be a time as in RFC 3339", "datetime_parsing"))
    if errors:
        raise InvalidBody(tuple(errors))
    return CreateOptions(
        caller,
        webhook=parse_webhook(body, "cog"),
        id=prediction_id,
        upload_url=prefix or settings.cog.upload_url,
    )


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
