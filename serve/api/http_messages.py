"""Request bodies, the `Prefer` header, `Server-Timing` and output URIs, shared by the Replicate and Cog APIs."""

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from starlette.requests import Request

from serve.errors import BodyTooLarge, FieldError, InvalidInput, MalformedBody, NotFound
from serve.inputs import printable
from serve.media.output_store import OutputStore
from serve.predictions.prediction import Prediction


class InvalidBody(InvalidInput):
    """Faults of the body's own keys, rather than of the inputs that it holds."""


async def read_json_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as a JSON object.

    Raises `BodyTooLarge` as soon as the limit is passed, whatever Content-Length says, and `MalformedBody` if the body
    is not a JSON object in UTF-8. NaN and Infinity are accepted here and rejected by the validation of their field.
    """
    content = await _read(request, max_bytes)
    try:
        value = json.loads(content.decode())
    except ValueError:  # also for bad UTF-8, and for whole numbers of thousands of digits
        raise MalformedBody("the request body is not valid JSON in UTF-8") from None
    except RecursionError:
        raise MalformedBody("the request body is nested too deeply") from None
    if not isinstance(value, dict):
        raise MalformedBody("the request body must be a JSON object")
    return cast(dict[str, Any], value)


def check_body_keys(body: dict[str, Any], known: dict[str, type], not_served: frozenset[str]) -> None:
    """Raises `InvalidBody` naming every key of a body that has no place in it, or a value of the wrong type.

    `known` maps each key to the type of its value, `not_served` names keys that the API has and this service has not.
    """
    faults = [_key_fault(key, value, known, not_served) for key, value in body.items()]
    missing = [] if "input" in body else [FieldError("input", "Field required", "missing")]
    found = (*missing, *(fault for fault in faults if fault))
    if found:
        raise InvalidBody(found)


JSON_NAMES: dict[type, str] = {dict: "an object", str: "a string", bool: "a boolean"}


def _key_fault(key: str, value: object, known: dict[str, type], not_served: frozenset[str]) -> FieldError | None:
    if key in not_served:
        return FieldError(key, "is not served by this version; leave the field out", "unsupported")
    if key not in known:
        return FieldError(printable(key), "Extra inputs are not permitted", "extra_forbidden")
    if value is None and key != "input":
        return None
    if not isinstance(value, known[key]):
        return FieldError(key, f"Input should be {JSON_NAMES[known[key]]}", f"{known[key].__name__}_type")
    return None


async def _read(request: Request, max_bytes: int) -> bytearray:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > max_bytes):
        raise BodyTooLarge(max_bytes)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_bytes:
            raise BodyTooLarge(max_bytes)
    return content


PREFERENCE = re.compile(r'^(?P<name>[a-z-]+)(?:\s*=\s*"?(?P<value>[^";]*)"?)?\s*(?:;.*)?$', re.IGNORECASE)


class Preference(NamedTuple):
    wait_s: float | None
    """Seconds to wait for the end of a prediction; None: answer at once."""
    respond_async: bool
    preference_applied: str | None
    """For the header `Preference-Applied`."""


def parse_prefer(headers: Iterable[str], wait_max_s: float) -> Preference:
    """What the `Prefer` headers of a request ask for.

    A wait is held to `wait_max_s`; `wait` alone is the most, and `wait=0` is none. The first mention of a name counts.
    """
    named: dict[str, str | None] = {}
    for part in ",".join(headers).split(","):
        if match := PREFERENCE.match(part.strip()):
            named.setdefault(match["name"].lower(), match["value"])
    respond_async = "respond-async" in named
    if "wait" not in named:
        return Preference(None, respond_async, "respond-async" if respond_async else None)
    asked = named["wait"]
    if asked is None:
        return Preference(wait_max_s, respond_async, "wait")
    if not asked.isdecimal() or float(asked) == 0:
        return Preference(None, respond_async, None)
    wait_s = min(float(asked), wait_max_s)
    return Preference(wait_s, respond_async, f"wait={wait_s:g}")


STAGES = (
    "plan", "fetch", "queue", "lora", "text", "encode_image", "denoise", "decode", "safety", "encode", "store"
)  # fmt: skip


def server_timing_header(prediction: Prediction) -> dict[str, str]:
    """The header, with the stages that the prediction has gone through in their order; milliseconds."""
    stages = [f"{stage};dur={prediction.stages_ms[stage]:.1f}" for stage in STAGES if stage in prediction.stages_ms]
    return {"Server-Timing": ", ".join(stages)} if stages else {}


async def output_uris(prediction: Prediction, outputs: OutputStore) -> list[str] | None:
    """The URIs of a prediction that succeeded; None for any other, and when its pictures are kept no longer."""
    if prediction.status != "succeeded":
        return None
    try:
        return [await outputs.uri(prediction.id, output.name) for output in prediction.outputs]
    except NotFound:
        return None
