"""Request bodies: what is no JSON object, and what is too much of one."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from serve.settings import Settings
from tests.app_factory import House, house
from tests.fakes import ONE_IMAGE, FakePool

CAT = b'{"input": {"prompt": "a cat", "num_inference_steps": 2}}'
FACES = ["/v1/predictions", "/v1/models/fofr/flux-handwriting-and-sketch/predictions", "/predictions"]


async def post(home: House, path: str, content: bytes | AsyncIterator[bytes]) -> httpx.Response:
    async with home.http as client:
        return await client.post(path, content=content)


@pytest.mark.parametrize("path", FACES)
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
async def test_what_is_no_json_object_is_a_400(path: str, content: bytes) -> None:
    refused = await post(house(FakePool(ONE_IMAGE)), path, content)
    assert refused.status_code == 400
    assert "request body" in refused.json()["detail"]


class Chunks:
    """A body of 100 chunks of 100 bytes, which knows how many were asked for."""

    def __init__(self) -> None:
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.read < 100:
            self.read += 1
            yield b" " * 100


@pytest.mark.parametrize("path", FACES)
@pytest.mark.parametrize(
    ("headers", "most_read"), [({"Content-Length": "10000"}, 0), ({"Content-Length": "9" * 5000}, 0), ({}, 11)]
)
async def test_a_body_that_is_too_large_is_read_no_further_than_needed(
    path: str, headers: dict[str, str], most_read: int
) -> None:
    chunks = Chunks()
    async with house(FakePool(ONE_IMAGE), Settings(max_body_bytes=1000)).http as client:
        refused = await client.post(path, content=chunks, headers=headers)
    assert refused.status_code == 413
    assert "1000 bytes" in refused.json()["detail"]
    assert chunks.read <= most_read


async def test_a_body_up_to_the_limit_is_taken() -> None:
    home = house(FakePool(ONE_IMAGE), Settings(max_body_bytes=1000))
    assert (await post(home, "/v1/predictions", CAT + b" " * (1000 - len(CAT)))).status_code == 201


async def test_a_content_type_is_not_asked_for() -> None:
    async with house(FakePool(ONE_IMAGE)).http as client:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (await client.post("/v1/predictions", content=CAT, headers=headers)).status_code == 201


async def test_a_whole_number_as_long_as_python_reads_is_a_seed() -> None:
    seed = 10**4000
    made = await post(
        house(FakePool(ONE_IMAGE)), "/v1/predictions", json.dumps({"input": {"prompt": "a", "seed": seed}}).encode()
    )
    assert made.status_code == 201
    assert made.json()["metrics"]["seed"] == seed % 2**64
