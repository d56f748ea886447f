"""The `Prefer` header (RFC 7240): how long a caller wants to wait. Pure; what it does not know, it ignores."""

import re
from collections.abc import Iterable
from typing import NamedTuple

PREFERENCE = re.compile(r'^(?P<name>[a-z-]+)(?:\s*=\s*"?(?P<value>[^";]*)"?)?\s*(?:;.*)?$', re.IGNORECASE)


class Preference(NamedTuple):
    wait_s: float | None
    """Seconds to wait for the end of a prediction; None: answer at once."""
    respond_async: bool
    applied: str | None
    """For the header `Preference-Applied`."""


def read_preference(headers: Iterable[str], wait_max_s: float) -> Preference:
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
