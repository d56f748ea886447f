"""Reads the JSON object that a request carries, within a bound. Knows no face and no input."""

import json
from typing import Any, cast

from starlette.requests import Request

from serve.errors import BodyTooLarge, Fault, InvalidInput, NotJson
from serve.inputs import printable


class InvalidBody(InvalidInput):
    """Faults of the body's own keys, rather than of the inputs that it holds."""


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as a JSON object.

    Raises `BodyTooLarge` as soon as the bound is passed, whatever the Content-Length says, and `NotJson` for all that
    is no JSON object in UTF-8. NaN and Infinity are read as Python does: they are faults of the field that holds them.
    """
    content = await _read(request, max_bytes)
    try:
        value = json.loads(content.decode())
    except ValueError:  # also for bad UTF-8, and for whole numbers of thousands of digits
        raise NotJson("the request body is not valid JSON in UTF-8") from None
    except RecursionError:
        raise NotJson("the request body is nested too deeply") from None
    if not isinstance(value, dict):
        raise NotJson("the request body must be a JSON object")
    return cast(dict[str, Any], value)


def check_keys(body: dict[str, Any], known: dict[str, type], not_served: frozenset[str]) -> None:
    """Raises `InvalidBody` naming every key of a body that has no place in it, or a value of the wrong type.

    `known` maps each key to the type of its value, `not_served` names keys that the API has and this service has not.
    """
    faults = [_key_fault(key, value, known, not_served) for key, value in body.items()]
    missing = [] if "input" in body else [Fault("input", "Field required", "missing")]
    found = (*missing, *(fault for fault in faults if fault))
    if found:
        raise InvalidBody(found)


JSON_NAMES: dict[type, str] = {dict: "an object", str: "a string", bool: "a boolean"}


def _key_fault(key: str, value: object, known: dict[str, type], not_served: frozenset[str]) -> Fault | None:
    if key in not_served:
        return Fault(key, "is not served by this version; leave the field out", "unsupported")
    if key not in known:
        return Fault(printable(key), "Extra inputs are not permitted", "extra_forbidden")
    if value is None and key != "input":
        return None
    if not isinstance(value, known[key]):
        return Fault(key, f"Input should be {JSON_NAMES[known[key]]}", f"{known[key].__name__}_type")
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
