"""Presigned URLs of a bucket at a private address."""

import pytest

from serve.errors import StorageUnavailable
from serve.net.presigned_urls import PresignedUrls
from serve.settings import FetchSettings
from tests.local_server import local_server


@pytest.mark.parametrize(
    ("status", "valid"),
    [("200 OK", True), ("206 Partial Content", True), ("403 Forbidden", False), ("404 Not Found", False)],
)
async def test_url_is_valid_if_the_bucket_lets_it_read_one_byte(status: str, valid: bool) -> None:
    urls = PresignedUrls(FetchSettings())
    async with local_server() as bucket:
        url = bucket.respond("/image.png", status)
        assert await urls.is_valid(f"{url}?signature=1") is valid
    urls.close()
    [head] = bucket.heads
    assert head.startswith("GET /image.png?signature=1 ")
    assert "range: bytes=0-0" in head.lower()


async def test_redirect_is_not_followed() -> None:
    urls = PresignedUrls(FetchSettings())
    async with local_server() as bucket:
        url = bucket.respond("/image.png", "302 Found", Location="/other.png")
        bucket.respond("/other.png")
        assert not await urls.is_valid(url)
    urls.close()
    assert bucket.requested_paths == ["/image.png"]


async def test_bucket_that_fails_or_is_away_is_unavailable() -> None:
    urls = PresignedUrls(FetchSettings())
    async with local_server() as bucket:
        url = bucket.respond("/image.png", "503 Service Unavailable")
        with pytest.raises(StorageUnavailable):
            await urls.is_valid(url)
    with pytest.raises(StorageUnavailable):
        await urls.is_valid(url)
    urls.close()


async def test_text_that_is_no_url_is_not_valid() -> None:
    assert not await PresignedUrls(FetchSettings()).is_valid("https://user@bucket.example/image.png")
