"""The headers of requests that create predictions: `Idempotency-Key` and `Cancel-After`."""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from starlette.requests import Request

from serve.api.http_messages import InvalidHeader
from serve.errors import FieldError, MalformedBody
from serve.inputs import shorten_name
from serve.predictions.create_options import CreateOptions
from serve.predictions.idempotency import IdempotencyKey

MIN_LIFETIME = timedelta(seconds=5)
MAX_LIFETIME = timedelta(hours=24)
MAX_KEY_CHARS = 255
_KEY = re.compile(rf"[\x21-\x7e]{{1,{MAX_KEY_CHARS}}}")
_DURATION = re.compile(r"(?=\d)(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s?)?", re.ASCII)
"""Such as `90`, `90s`, `5m` or `1h30m`."""


def parse_create_options(request: Request, body: Mapping[str, Any]) -> CreateOptions:
    """The options in the headers of a request with this body. Raises `InvalidHeader`."""
    key, lifetime = request.headers.get("idempotency-key"), request.headers.get("cancel-after")
    return CreateOptions(
        idempotency=None if key is None else parse_idempotency_key(key, request.url.path, body),
        lifetime=None if lifetime is None else parse_cancel_after(lifetime),
    )


def parse_cancel_after(text: str) -> timedelta:
    """The duration from the creation of a prediction to its deadline. Raises `InvalidHeader`."""
    match = _DURATION.fullmatch(text.strip())
    if match:
        hours, minutes, seconds = (int(number or 0) for number in match.groups())
        lifetime = timedelta(hours=hours, minutes=minutes, seconds=seconds)
        if MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
            return lifetime
    message = f"{shorten_name(text)!r} is not a duration from 5s to 24h; send one such as 90s, 10m or 1h30m"
    raise InvalidHeader((FieldError("Cancel-After", message, "cancel_after"),))


def parse_idempotency_key(key: str, path: str, body: Mapping[str, Any]) -> IdempotencyKey:
    """The key of a request with this path and body. Raises `InvalidHeader`."""
    return IdempotencyKey(_check_key(key), _hash(path, body))


def _check_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        message = (
            f"{shorten_name(key)!r} does not have 1 to {MAX_KEY_CHARS} visible ASCII characters; send a random UUID"
        )
        raise InvalidHeader((FieldError("Idempotency-Key", message, "idempotency_key"),))
    return key


def _hash(path: str, body: Mapping[str, Any]) -> str:
    """Equal for bodies that differ in spaces or in the order of their keys."""
    try:
        return hashlib.sha256(json.dumps([path, body], sort_keys=True).encode()).hexdigest()
    except RecursionError:
        raise MalformedBody("the request body is nested too deeply") from None
