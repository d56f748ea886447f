"""Request bodies: malformed, oversized and accepted ones."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from serve.settings import Settings
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import ONE_IMAGE, FakePool

CAT = b'{"input": {"prompt": "a cat", "num_inference_steps": 2}}'
PATHS = ["/v1/predictions", "/v1/models/fofr/flux-handwriting-and-sketch/predictions", "/predictions"]


async def post(app: AppUnderTest, path: str, content: bytes | AsyncIterator[bytes]) -> httpx.Response:
    async with app.http as client:
        return await client.post(path, content=content)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"prompt=a+cat",
        b"[]",
        b'"input"',
        b"null",
        b"\xff\xfe{}",
        b'{"input": {"prompt": "\xff"}}',
        b'\xef\xbb\xbf{"input": {}}',
        b"[" * 100_000,
        b'{"input":' * 100_000,
        b'{"input": {"prompt": "a", "seed": ' + b"9" * 5000 + b"}}",
    ],
)
async def test_body_that_is_not_a_json_object_is_rejected_with_400(path: str, content: bytes) -> None:
    response = await post(make_app(FakePool(ONE_IMAGE)), path, content)
    assert response.status_code == 400
    assert "body" in response.json()["detail"]


class Chunks:
    """A body of 100 chunks of 100 bytes. `read` counts the chunks that were read."""

    def __init__(self) -> None:
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.read < 100:
            self.read += 1
            yield b" " * 100


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "max_read"), [({"Content-Length": "10000"}, 0), ({"Content-Length": "9" * 5000}, 0), ({}, 11)]
)
async def test_oversized_body_is_rejected_with_413_before_it_is_read_completely(
    path: str, headers: dict[str, str], max_read: int
) -> None:
    chunks = Chunks()
    async with make_app(FakePool(ONE_IMAGE), Settings(max_body_bytes=1000)).http as client:
        response = await client.post(path, content=chunks, headers=headers)
    assert response.status_code == 413
    assert "1000" in response.json()["detail"]
    assert chunks.read <= max_read


async def test_body_of_exactly_the_maximum_size_is_accepted() -> None:
    app = make_app(FakePool(ONE_IMAGE), Settings(max_body_bytes=1000))
    assert (await post(app, "/v1/predictions", CAT + b" " * (1000 - len(CAT)))).status_code == 201


async def test_content_type_is_ignored() -> None:
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (await client.post("/v1/predictions", content=CAT, headers=headers)).status_code == 201


async def test_seed_of_thousands_of_digits_is_accepted() -> None:
    seed = 10**4000
    body = json.dumps({"input": {"prompt": "a", "seed": seed}}).encode()
    response = await post(make_app(FakePool(ONE_IMAGE)), "/v1/predictions", body)
    assert response.status_code == 201
    assert response.json()["metrics"]["seed"] == seed % 2**64
