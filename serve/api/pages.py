"""Pages of the lists of Replicate's API: their query parameters and links."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from serve.api.http_messages import InvalidQuery
from serve.errors import FieldError
from serve.predictions.prediction_pages import PageQuery

NEWER = "newer-"
"""Cursors with this prefix are for the page before a prediction, others for the page after it."""
TIMES = ("created_after", "created_before")


def parse_page_query(parameters: Mapping[str, str], limit: int) -> PageQuery:
    """The query for up to `limit` predictions. Raises `InvalidInput` naming a parameter."""
    cursor = parameters.get("cursor")
    is_newer = cursor is not None and cursor.startswith(NEWER)
    return PageQuery(
        limit,
        older_than=None if is_newer else cursor,
        newer_than=cursor.removeprefix(NEWER) if is_newer and cursor else None,
        created_after=_parse_time("created_after", parameters.get("created_after")),
        created_before=_parse_time("created_before", parameters.get("created_before")),
    )


def single_page(results: list[dict[str, Any]]) -> dict[str, Any]:
    """All results on one page: the settings list few models."""
    return {"previous": None, "next": None, "results": results}


def forward_page(items: list[dict[str, Any]], page_size: int, url: str) -> dict[str, Any]:
    """A page of the list at `url`. `items` has one object more than `page_size` if another page follows."""
    results = items[:page_size]
    following = f"{url}?cursor={results[-1]['id']}" if len(items) > page_size else None
    return {"previous": None, "next": following, "results": results}


def both_ways_page(results: list[dict[str, Any]], query: PageQuery, url: str) -> dict[str, Any]:
    """A page of predictions. `results` has `query.limit` of them if another page follows."""
    times = {name: getattr(query, name).isoformat() for name in TIMES if getattr(query, name) is not None}
    size, backwards = query.limit - 1, query.newer_than is not None
    has_more = len(results) > size
    shown = results[-size:] if backwards else results[:size]

    def link(cursor: str) -> str:
        return f"{url}?{urlencode({**times, 'cursor': cursor})}"

    has_newer = has_more if backwards else query.older_than is not None
    has_older = bool(shown) if backwards else has_more
    return {
        "previous": link(f"{NEWER}{shown[0]['id']}") if shown and has_newer else None,
        "next": link(shown[-1]["id"]) if shown and has_older else None,
        "results": shown,
    }


def _parse_time(name: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidQuery((FieldError(name, f"{text[:50]!r} is not a time such as 2026-01-31T12:00:00Z"),)) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
