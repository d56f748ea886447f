"""Request bodies with `Content-Encoding: gzip`."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from serve.api.gzip_requests import PIECE_BYTES, GzipRequestMiddleware
from serve.settings import FileSettings, Settings
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import ONE_IMAGE, FakePool

BODY = json.dumps({"input": {"prompt": "a cat", "num_inference_steps": 2}}).encode()
GZIP = {"Content-Encoding": "gzip"}
EMPTY = gzip.compress(b"", mtime=0)
PATHS = ["/v1/predictions", "/predictions"]
MAX_BYTES = 1_000_000


def make_small_app(token: str | None = None) -> AppUnderTest:
    settings = Settings(max_body_bytes=MAX_BYTES, files=FileSettings(max_file_bytes=MAX_BYTES))
    return make_app(FakePool(ONE_IMAGE), settings, token=token)


async def post(
    content: bytes | AsyncIterator[bytes], headers: dict[str, str], path: str = "/v1/predictions"
) -> httpx.Response:
    async with make_small_app().http as client:
        return await client.post(path, content=content, headers=headers)


async def pieces(content: bytes, size: int = 1) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", " gzip "])
@pytest.mark.parametrize("path", PATHS)
async def test_compressed_body_is_accepted(path: str, encoding: str) -> None:
    response = await post(gzip.compress(BODY, mtime=0), {"Content-Encoding": encoding}, path)
    assert response.status_code in (200, 201)
    assert response.json()["input"]["prompt"] == "a cat"


async def test_compressed_body_may_arrive_in_pieces_and_have_several_members() -> None:
    assert (await post(pieces(gzip.compress(BODY, mtime=0)), GZIP)).status_code == 201
    content = gzip.compress(BODY[:20]) + gzip.compress(BODY[20:])
    assert (await post(content, GZIP)).status_code == 201
    assert (await post(pieces(content), GZIP)).status_code == 201


@pytest.mark.parametrize("size", [300_000, 256 * 1024, 512 * 1024, MAX_BYTES - len(BODY)])
async def test_body_that_decompresses_to_several_pieces_is_accepted(size: int) -> None:
    assert (await post(gzip.compress(BODY + b" " * size), GZIP)).status_code == 201


async def test_identity_encoding_is_accepted() -> None:
    assert (await post(BODY, {"Content-Encoding": "identity"})).status_code == 201


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        BODY,
        gzip.compress(BODY, mtime=0)[:-1],
        gzip.compress(BODY, mtime=0)[:5],
        gzip.compress(BODY, mtime=0) + b"x",
        zlib.compress(BODY),
    ],
)
async def test_body_that_is_not_gzip_is_rejected_with_400(path: str, content: bytes) -> None:
    response = await post(content, GZIP, path)
    assert response.status_code == 400
    assert "gzip" in response.json()["detail"]


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "x" * 200])
@pytest.mark.parametrize("path", PATHS)
async def test_other_encodings_are_rejected_with_415(path: str, encoding: str) -> None:
    response = await post(BODY, {"Content-Encoding": encoding}, path)
    assert (response.status_code, response.headers["Accept-Encoding"]) == (415, "gzip")
    assert encoding[:100] in response.json()["detail"]


class Bomb:
    """A body of 50 MiB after decompression, in pieces of a kilobyte. `read` counts them."""

    def __init__(self) -> None:
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in pieces(gzip.compress(bytes(50 * 2**20), 1), 1024):
            self.read += 1
            yield piece


@pytest.mark.parametrize("path", PATHS)
async def test_bomb_is_rejected_with_413_before_it_is_decompressed(path: str) -> None:
    bomb = Bomb()
    async with make_small_app().http as client:
        response = await client.post(path, content=bomb, headers=GZIP)
    assert response.status_code == 413
    assert str(MAX_BYTES) in response.json()["detail"]
    assert bomb.read <= 10


async def test_compressed_upload_is_bounded_by_its_decompressed_size() -> None:
    boundary = b"--b\r\nContent-Disposition: form-data; name=content; filename=a\r\n\r\n"
    headers = {**GZIP, "Content-Type": "multipart/form-data; boundary=b"}
    for size, status in ((1000, 201), (3 * MAX_BYTES, 413)):
        content = gzip.compress(boundary + bytes(size) + b"\r\n--b--\r\n")
        assert (await post(content, headers, "/v1/files")).status_code == status


@pytest.mark.parametrize(
    "empty", [gzip.compress(b"", mtime=0), gzip.compress(b"", mtime=0)[:10] + b"\0\0\0\xff\xff" * 1000]
)
async def test_endless_data_without_content_is_rejected_with_400(empty: bytes) -> None:
    read_bytes = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read_bytes
        header = empty[:10]
        yield header if len(empty) > 100 else empty
        while read_bytes < 3 * PIECE_BYTES:
            piece = empty[10:] if len(empty) > 100 else empty * 100
            read_bytes += len(piece)
            yield piece

    response = await post(endless(), GZIP)
    assert response.status_code == 400
    assert read_bytes <= 2 * PIECE_BYTES


async def test_pieces_of_a_decompressed_body_are_small() -> None:
    sizes: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]

    content = gzip.compress(bytes(10 * PIECE_BYTES + 1))

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Message) -> None:
        pass

    scope = {"type": "http", "headers": [(b"content-encoding", b"gzip")]}
    await GzipRequestMiddleware(app)(scope, receive, send)
    assert sum(sizes) == 10 * PIECE_BYTES + 1
    assert max(sizes) <= PIECE_BYTES


async def test_token_is_checked_before_the_encoding() -> None:
    async with make_small_app(token="secret").http as client:
        response = await client.post("/v1/predictions", content=BODY, headers={"Content-Encoding": "br"})
    assert response.status_code == 401


async def test_disconnect_cancels_a_synchronous_request_with_a_compressed_body() -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app, disconnect = make_app(pool), asyncio.Event()
    messages = [{"type": "http.request", "body": gzip.compress(BODY, mtime=0), "more_body": False}]
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        if messages:
            return messages.pop()
        await disconnect.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/predictions", "root_path": "", "query_string": b"",
        "headers": [(b"content-encoding", b"gzip")],
    }  # fmt: skip
    calling = asyncio.create_task(app.app(scope, receive, send))  # type: ignore[arg-type]
    while not pool.calls:
        await asyncio.sleep(0.001)
    disconnect.set()
    await asyncio.wait_for(calling, 5)
    assert sent[0]["status"] == 499
    assert (await app.service.get(app.prediction_ids[0])).status == "canceled"
