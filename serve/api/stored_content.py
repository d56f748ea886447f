"""Responses with stored files: entity tags, byte ranges (RFC 9110) and file names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import NOT_MODIFIED, OK, PARTIAL_CONTENT, REQUESTED_RANGE_NOT_SATISFIABLE
from typing import Literal
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serve.media.object_store import ObjectStore

# A server may ignore ranges, and this one ignores several in one request.
_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class StoredContent:
    """A file in an `ObjectStore`, and how clients see it."""

    key: str
    media_type: str
    disposition: Literal["inline", "attachment"]
    file_name: str
    etag: str | None = None
    """With its quotation marks; None means the one of the store."""


class UnsatisfiableRange(Exception):
    """The range starts after the end of the file."""


async def stored_response(
    request: Request, store: ObjectStore, content: StoredContent, headers: Mapping[str, str]
) -> Response:
    """The response to a GET or HEAD request. Raises `FileNotFoundError` and `StorageUnavailable`."""
    info = await store.head(content.key)
    etag = content.etag or info.etag
    headers = {**headers, "ETag": etag, "Accept-Ranges": "bytes"}
    if has_tag(request.headers.get("If-None-Match", ""), etag):
        return Response(status_code=NOT_MODIFIED, headers=headers)
    headers["Content-Disposition"] = content_disposition(content.disposition, content.file_name)
    # A range of another version of the file would not fit to the rest that the client has.
    is_same = request.headers.get("If-Range", etag) == etag
    try:
        span = parse_range(request.headers.get("Range", ""), info.size_bytes) if is_same else None
    except UnsatisfiableRange:
        headers["Content-Range"] = f"bytes */{info.size_bytes}"
        return Response(status_code=REQUESTED_RANGE_NOT_SATISFIABLE, headers=headers)
    start, end = span or (0, info.size_bytes)
    headers["Content-Length"] = str(end - start)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{info.size_bytes}"
    status = OK if span is None else PARTIAL_CONTENT
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=content.media_type)
    chunks = await store.open(content.key, start, end)
    return StreamingResponse(chunks, status, headers, content.media_type)


def parse_range(header: str, size_bytes: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of a single range; None for no, several or malformed ranges.

    Raises `UnsatisfiableRange`.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match["first"] == match["last"] == "":
        return None
    if not match["first"]:
        start, end = max(0, size_bytes - int(match["last"])), size_bytes
    else:
        start = int(match["first"])
        end = min(int(match["last"]) + 1, size_bytes) if match["last"] else size_bytes
        if match["last"] and int(match["last"]) < start:
            return None
    if start >= size_bytes:
        raise UnsatisfiableRange
    return start, end


def has_tag(if_none_match: str, etag: str) -> bool:
    """Whether a client that sends this `If-None-Match` header has the content already."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


def content_disposition(kind: str, file_name: str) -> str:
    quoted = quote(file_name)
    return f'{kind}; filename="{file_name}"' if quoted == file_name else f"{kind}; filename*=utf-8''{quoted}"
