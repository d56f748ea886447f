"""ASGI middleware that decompresses request bodies with `Content-Encoding: gzip`."""

import asyncio
import zlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import MalformedBody, UnknownEncoding

PIECE_BYTES = 256 * 2**10
"""A body is decompressed in pieces as it is read, so that a reader with a limit stops soon after it."""
_GZIP_FORMAT = zlib.MAX_WBITS | 16
_COMPRESSED_HEADERS = (b"content-encoding", b"content-length")


class GzipRequestMiddleware:
    """Passes a decompressed body on. Raises `UnknownEncoding` for other encodings than gzip and identity."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = Headers(scope=scope).get("content-encoding", "identity") if scope["type"] == "http" else "identity"
        normalized = encoding.strip().lower()
        if normalized in ("gzip", "x-gzip"):
            headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _COMPRESSED_HEADERS]
            scope, receive = {**scope, "headers": headers}, _GzipBody(receive)
        elif normalized not in ("", "identity"):
            raise UnknownEncoding(encoding)
        await self._app(scope, receive, send)


class _GzipBody:
    """An ASGI `receive` that returns a body of one or more gzip members decompressed.

    Raises `MalformedBody`, also for data that hardly decompresses to anything: a reader, which limits the decompressed
    size, would read it for ever.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._member = zlib.decompressobj(_GZIP_FORMAT)
        self._input = b""
        self._input_ended = False
        self._ended = False
        self._received_bytes = 0
        self._decompressed_bytes = 0

    async def __call__(self) -> Message:
        if self._ended:
            return await self._receive()
        while not (self._input or self._input_ended):
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._input = message.get("body", b"")
            self._input_ended = not message.get("more_body", False)
            self._received_bytes += len(self._input)
        try:
            # In a thread, because a small body may decompress to a large one.
            piece = await asyncio.to_thread(self._decompress_piece)
        except zlib.error:
            raise MalformedBody("the request body is not valid gzip, as its Content-Encoding says") from None
        self._decompressed_bytes += len(piece)
        if not self._input and self._received_bytes > 2 * self._decompressed_bytes + PIECE_BYTES:
            raise MalformedBody("the request body has gzip data without content")
        self._ended = self._input_ended and not self._input
        if self._ended and not self._member.eof:
            raise MalformedBody("the request body ends within its gzip data; send it again")
        return {"type": "http.request", "body": piece, "more_body": not self._ended}

    def _decompress_piece(self) -> bytes:
        piece = b""
        while self._input and not piece:
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP_FORMAT)
            piece = self._member.decompress(self._input, PIECE_BYTES)
            self._input = self._member.unconsumed_tail or self._member.unused_data
        return piece
