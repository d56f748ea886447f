"""Parsing of the `Prefer` header."""

import pytest

from serve.api.http_messages import Preference, parse_prefer


@pytest.mark.parametrize(
    ("headers", "preference"),
    [
        ([], (None, False, None)),
        (["wait"], (60, False, "wait")),
        (["Wait"], (60, False, "wait")),
        (["wait=5"], (5, False, "wait=5")),
        (['wait = "5"'], (5, False, "wait=5")),
        (["wait=61"], (60, False, "wait=60")),
        (["wait=99999999999999999999"], (60, False, "wait=60")),
        (["wait=0"], (None, False, None)),
        (["wait=-1"], (None, False, None)),
        (["wait=1.5"], (None, False, None)),
        (["wait=soon"], (None, False, None)),
        (["wait=5; sooner=better"], (5, False, "wait=5")),
        (["respond-async"], (None, True, "respond-async")),
        (["respond-async, wait=10"], (10, True, "wait=10")),
        (["respond-async", "wait=10"], (10, True, "wait=10")),
        (["wait=3, wait=7"], (3, False, "wait=3")),
        (["return=minimal, depth-noroot"], (None, False, None)),
        (["=,;,,wait"], (60, False, "wait")),
    ],
)
def test_prefer_header_is_parsed_and_unknown_preferences_are_ignored(
    headers: list[str], preference: tuple[float | None, bool, str | None]
) -> None:
    assert parse_prefer(headers, max_wait_s=60) == Preference(*preference)
