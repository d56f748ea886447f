"""Reads file uploads: `multipart/form-data` bodies, which are written to disk while they arrive."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import IO, Any, NamedTuple, cast

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from serve.api.http_messages import InvalidBody
from serve.errors import BodyTooLarge, FieldError, MalformedBody, UploadTimedOut
from serve.inputs import shorten_name
from serve.media.file_rows import FileDescription

PARTS = ("content", "metadata", "filename", "type")
MAX_METADATA_BYTES = 64 * 2**10
MAX_NAME_CHARS = 255
OVERHEAD_BYTES = 2**20
"""Size of a body beyond that of its file: boundaries, part headers and the other parts."""
DEFAULT_CONTENT_TYPE = "application/octet-stream"

_CONTENT_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,100}/[a-z0-9!#$&^_.+-]{1,100}")


class ReceivedFile(NamedTuple):
    content: IO[bytes]
    """Closed when the request ends."""
    description: FileDescription


@asynccontextmanager
async def receive_file(
    request: Request, max_file_bytes: int, timeout_s: float, on_received: Callable[[int], Awaitable[None]]
) -> AsyncGenerator[ReceivedFile, None]:
    """Receives the file of an upload, and removes what is left of it at the end of the block.

    `on_received` is called with the size of each piece as it arrives, and may raise. Raises the errors of
    `receive_form`, and `InvalidBody`.
    """
    # JavaScript's client sends `metadata` as a file too.
    receiving = receive_form(request, max_file_bytes, timeout_s, on_received, len(PARTS), len(PARTS))
    async with receiving as form:
        yield await _read_parts(form, max_file_bytes)


@asynccontextmanager
async def receive_form(
    request: Request,
    max_file_bytes: int,
    timeout_s: float,
    on_received: Callable[[int], Awaitable[None]],
    max_files: int,
    max_fields: int,
) -> AsyncGenerator[FormData, None]:
    """Receives a body of `multipart/form-data`, and closes its files at the end of the block.

    Raises `MalformedBody`, `BodyTooLarge`, and `UploadTimedOut` if the body does not arrive within `timeout_s`.
    """
    max_bytes = max_file_bytes + OVERHEAD_BYTES
    _check_headers(request, max_bytes)
    received_bytes = 0

    async def counting_receive() -> Message:
        nonlocal received_bytes
        message = await request.receive()
        size_bytes = len(message.get("body", b""))
        received_bytes += size_bytes
        if received_bytes > max_bytes:
            raise BodyTooLarge(max_file_bytes)
        await on_received(size_bytes)
        return message

    counted = Request(request.scope, counting_receive)
    try:
        async with asyncio.timeout(timeout_s):
            form = await counted.form(max_files=max_files, max_fields=max_fields)
    except TimeoutError:
        raise UploadTimedOut(timeout_s) from None
    except HTTPException as error:
        raise MalformedBody(f"the request body cannot be read as multipart/form-data: {error.detail}") from None
    try:
        yield form
    finally:
        await form.close()


def _check_headers(request: Request, max_bytes: int) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        raise MalformedBody("the request body must be multipart/form-data, with each file in a part of its own")
    content_length = request.headers.get("content-length", "")
    # int() rejects strings of thousands of digits, so very long ones are not parsed.
    if content_length.isdecimal() and (len(content_length) > 18 or int(content_length) > max_bytes):
        raise BodyTooLarge(max_bytes - OVERHEAD_BYTES)


async def _read_parts(form: FormData, max_file_bytes: int) -> ReceivedFile:
    parts = form.multi_items()
    names = [name for name, _ in parts]
    errors = [
        FieldError(shorten_name(name), "Extra inputs are not permitted", "extra_forbidden")
        for name in names
        if name not in PARTS
    ]
    errors += [FieldError(name, "is given more than once") for name in PARTS if names.count(name) > 1]
    content = form.get("content")
    if content is None:
        errors.append(FieldError("content", "Field required", "missing"))
    elif not isinstance(content, UploadFile):
        errors.append(FieldError("content", "must be a file: give its part a filename", "file_type"))
    elif content.size is not None and content.size > max_file_bytes:
        raise BodyTooLarge(max_file_bytes)
    metadata: dict[str, Any] = {}
    try:
        metadata = _parse_metadata(await _text(form, "metadata"))
        name, content_type = await _text(form, "filename"), await _text(form, "type")
    except InvalidBody as error:
        errors += error.field_errors
    if errors:
        raise InvalidBody(tuple(errors))
    upload = cast(UploadFile, content)
    description = FileDescription(
        _safe_name(name or upload.filename or ""), _safe_content_type(content_type or upload.content_type), metadata
    )
    return ReceivedFile(upload.file, description)


async def _text(form: FormData, name: str) -> str:
    """The text of a part, which may have been sent as a file; empty if there is none. Raises `InvalidBody`."""
    part = form.get(name)
    if isinstance(part, UploadFile):
        content = await part.read(MAX_METADATA_BYTES + 1)
        part = content.decode(errors="replace")
    if part is not None and len(part.encode(errors="replace")) > MAX_METADATA_BYTES:
        raise InvalidBody((FieldError(name, f"has more than {MAX_METADATA_BYTES} bytes", "too_long"),))
    return part or ""


def _parse_metadata(text: str) -> dict[str, Any]:
    """Parses the part `metadata`. Raises `InvalidBody` unless it is an object that can be sent back as JSON."""
    if not text:
        return {}
    try:
        value = json.loads(text)
        # Rejects NaN, Infinity and lone surrogates.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise InvalidBody((FieldError("metadata", "is not valid JSON", "json_invalid"),)) from None
    if not isinstance(value, dict):
        raise InvalidBody((FieldError("metadata", "must be a JSON object", "dict_type"),))
    return value


def _safe_name(name: str) -> str:
    """The last component of a file name, without control characters and within the length limit."""
    last = re.split(r"[/\\]", name)[-1].encode(errors="replace").decode()
    return "".join(char for char in last if char.isprintable())[-MAX_NAME_CHARS:] or "file"


def _safe_content_type(value: str | None) -> str:
    """The media type without parameters."""
    media_type = (value or "").partition(";")[0].strip().lower()
    return media_type if _CONTENT_TYPE.fullmatch(media_type) else DEFAULT_CONTENT_TYPE
