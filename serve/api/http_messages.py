"""Request bodies, the `Prefer` header, pages, `Server-Timing` and output URIs, shared by the APIs."""

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from starlette.requests import Request

from serve.errors import BodyTooLarge, FieldError, InvalidInput, MalformedBody, NotFound
from serve.inputs import shorten_name
from serve.media.output_store import OutputStore
from serve.predictions.prediction import Prediction

STAGES = (
    "plan", "fetch", "queue", "lora", "text", "encode_image", "denoise", "decode", "safety", "encode", "store"
)  # fmt: skip
"""The stages of a prediction in the order they run."""

PAGE_SIZE = 100
WAIT_LIMIT_S = 60

_JSON_TYPES: dict[type, str] = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
DIGITS = re.compile(r"[0-9]{1,9}")
_PREFERENCE = re.compile(r'^(?P<name>[a-z-]+)(?:\s*=\s*"?(?P<value>[^";]*)"?)?\s*(?:;.*)?$', re.IGNORECASE)


class InvalidBody(InvalidInput):
    """The keys of the body itself are invalid, not those of its `input` object."""

    location = ("body",)


class InvalidHeader(InvalidInput):
    location = ("header",)


class InvalidQuery(InvalidInput):
    location = ("query",)


class Preference(NamedTuple):
    """The parsed `Prefer` headers of a request."""

    wait_s: float | None
    """Seconds to wait for the prediction to end; None: respond at once."""
    respond_async: bool
    applied: str | None
    """Value of the `Preference-Applied` response header."""


async def read_json_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """Reads the body as a JSON object.

    Raises `BodyTooLarge` as soon as `max_bytes` is exceeded, whatever Content-Length says, and `MalformedBody` if the
    body is not a JSON object in UTF-8. NaN and Infinity are accepted here and rejected when their field is validated.
    """
    content = await read_body(request, max_bytes)
    try:
        value = json.loads(content.decode())
    except ValueError:  # also raised for invalid UTF-8 and for integers of thousands of digits
        raise MalformedBody("the request body is not valid JSON in UTF-8") from None
    except RecursionError:
        raise MalformedBody("the request body is nested too deeply") from None
    if not isinstance(value, dict):
        raise MalformedBody("the request body must be a JSON object")
    return cast(dict[str, Any], value)


async def read_body(request: Request, max_bytes: int) -> bytearray:
    """Reads the body. Raises `BodyTooLarge` as soon as `max_bytes` is exceeded, whatever Content-Length says."""
    content_length = request.headers.get("content-length", "")
    # int() rejects strings of thousands of digits, so very long ones are not parsed.
    if content_length.isdecimal() and (len(content_length) > 18 or int(content_length) > max_bytes):
        raise BodyTooLarge(max_bytes)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_bytes:
            raise BodyTooLarge(max_bytes)
    return content


def check_body_keys(body: dict[str, Any], allowed: dict[str, type], unsupported: frozenset[str]) -> None:
    """Raises `InvalidBody` naming every unknown key, every value of the wrong type, and a missing `input`.

    `allowed` maps each key to the type of its value. `unsupported` has keys that the original API accepts and this
    service does not.
    """
    missing = [] if "input" in body else [FieldError("input", "Field required", "missing")]
    errors = [_key_error(key, value, allowed, unsupported) for key, value in body.items()]
    field_errors = (*missing, *(error for error in errors if error))
    if field_errors:
        raise InvalidBody(field_errors)


def _key_error(key: str, value: object, allowed: dict[str, type], unsupported: frozenset[str]) -> FieldError | None:
    if key in unsupported:
        return FieldError(key, "is not supported; remove this field", "unsupported")
    if key not in allowed:
        return FieldError(shorten_name(key), "Extra inputs are not permitted", "extra_forbidden")
    if value is None and key != "input":
        return None
    if not isinstance(value, allowed[key]):
        return FieldError(key, f"Input should be {_JSON_TYPES[allowed[key]]}", f"{allowed[key].__name__}_type")
    return None


def parse_prefer(headers: Iterable[str], max_wait_s: float) -> Preference:
    """Parses the `Prefer` headers of a request.

    `wait=N` takes whole seconds up to `WAIT_LIMIT_S`, as Replicate documents. A wait is capped at `max_wait_s`; `wait`
    without a number waits that long, and `wait=0` does not wait. Raises `InvalidHeader` for other numbers.
    """
    preferences = _parse_preferences(headers)
    respond_async = "respond-async" in preferences
    if "wait" not in preferences:
        return Preference(None, respond_async, "respond-async" if respond_async else None)
    requested = preferences["wait"]
    if requested is None:
        return Preference(max_wait_s, respond_async, "wait")
    if not DIGITS.fullmatch(requested) or int(requested) > WAIT_LIMIT_S:
        message = f"wait={shorten_name(requested)} is not a whole number of seconds from 1 to {WAIT_LIMIT_S}"
        raise InvalidHeader((FieldError("Prefer", message, "prefer_wait"),))
    wait_s = min(float(requested), max_wait_s)
    return Preference(wait_s or None, respond_async, f"wait={wait_s:g}" if wait_s else None)


def prefers_async(headers: Iterable[str]) -> bool:
    return "respond-async" in _parse_preferences(headers)


def _parse_preferences(headers: Iterable[str]) -> dict[str, str | None]:
    """The preferences by name; if one is repeated, the first one counts."""
    preferences: dict[str, str | None] = {}
    for part in ",".join(headers).split(","):
        if match := _PREFERENCE.match(part.strip()):
            preferences.setdefault(match["name"].lower(), match["value"])
    return preferences


def server_timing_header(prediction: Prediction) -> dict[str, str]:
    """The `Server-Timing` header with the milliseconds of each finished stage; empty if there is none."""
    stages = [f"{stage};dur={prediction.stages_ms[stage]:.1f}" for stage in STAGES if stage in prediction.stages_ms]
    return {"Server-Timing": ", ".join(stages)} if stages else {}


async def output_uris(prediction: Prediction, outputs: OutputStore, with_unfinished: bool = False) -> list[str] | None:
    """The URIs of the images; None if the prediction has not succeeded or its images have been removed.

    If `with_unfinished`, a running prediction has those of the images that exist so far, and None without any.
    """
    is_running = with_unfinished and prediction.status == "processing" and prediction.outputs
    is_kept = prediction.status == "succeeded" and outputs.is_kept(prediction.completed_at)
    if not is_running and not is_kept:
        return None
    try:
        return [output.url or await outputs.uri(prediction.id, output.name) for output in prediction.outputs]
    except NotFound:
        return None
