"""Downloads from a local HTTP server: retries, resuming, limits, checksums and credentials."""

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from serve.errors import FetchFailed
from serve.lora.download import DownloadedFile, Downloader, create_http_client
from serve.lora.provider import ANY_HOST, Provider, RemoteFile
from tests.local_server import EMPTY_TRUST_STORE, LocalServer
from tests.logs import Logs
from tests.unit.lora.fake_providers import (
    PublishedFile,
    header,
    requests_with_header,
    settings_for,
)

BODY = os.urandom(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
TOKEN = "secret-token"


@asynccontextmanager
async def open_downloader(*servers: LocalServer, **fetch: Any) -> AsyncIterator[Downloader]:
    settings = settings_for(*servers, fetch=fetch)
    client = create_http_client(settings, tls=EMPTY_TRUST_STORE)
    try:
        yield Downloader(settings, client)
    finally:
        client.close()


async def download(
    server: LocalServer, file: RemoteFile | str, path: Path, known_etag: str | None = None, **fetch: Any
) -> DownloadedFile | None:
    file = RemoteFile(file, ANY_HOST) if isinstance(file, str) else file
    async with open_downloader(server, **fetch) as downloader:
        return await downloader.download(file, path, "the LoRA", known_etag)


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


async def download_error(server: LocalServer, file: RemoteFile | str, path: Path, **fetch: Any) -> str:
    """Returns why the download failed."""
    with pytest.raises(FetchFailed) as caught:
        await download(server, file, path, **fetch)
    assert path.name not in files_in(path.parent), "an incomplete file must not appear under its name"
    assert caught.value.what == "the LoRA"
    return caught.value.why


async def test_file_is_downloaded(provider: LocalServer, tmp_path: Path) -> None:
    file = PublishedFile(provider, "/a.safetensors", BODY)
    assert await download(provider, file.url, tmp_path / "a") == DownloadedFile('"one"', len(BODY), SHA256)
    assert (tmp_path / "a").read_bytes() == BODY
    assert files_in(tmp_path) == ["a"]


async def test_interrupted_download_is_resumed(provider: LocalServer, tmp_path: Path) -> None:
    file = PublishedFile(provider, "/a", BODY, break_after=[1_500_000, 700_000])
    assert await download(provider, file.url, tmp_path / "a") == DownloadedFile('"one"', len(BODY), SHA256)
    assert file.starts == [0, 1_500_000, 2_200_000]


@pytest.mark.parametrize(
    "options",
    [{"ranges": False}, {"etag": None}, {"etag": 'W/"one"'}],
    ids=["no ranges", "no ETag", "weak ETag"],
)
async def test_interrupted_download_restarts_without_ranges_or_strong_etag(
    provider: LocalServer, tmp_path: Path, options: dict[str, Any]
) -> None:
    file = PublishedFile(provider, "/a", BODY, break_after=[1_500_000], **options)
    downloaded = await download(provider, file.url, tmp_path / "a")
    assert downloaded is not None
    assert downloaded.sha256 == SHA256
    assert file.starts == [0, 0]
    assert (tmp_path / "a").read_bytes() == BODY


async def test_download_resumes_with_last_modified_date(provider: LocalServer, tmp_path: Path) -> None:
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    file = PublishedFile(provider, "/a", BODY, etag=None, last_modified=date, break_after=[1_000_000])
    assert await download(provider, file.url, tmp_path / "a") == DownloadedFile(date, len(BODY), SHA256)
    assert file.starts == [0, 1_000_000]


async def test_file_changed_between_attempts_is_downloaded_from_scratch(provider: LocalServer, tmp_path: Path) -> None:
    file = PublishedFile(provider, "/a", b"old" * 1_000_000, break_after=[1_500_000])
    respond = provider.responders["/a"]

    async def respond_and_change(writer: asyncio.StreamWriter) -> None:
        await respond(writer)
        file.body, file.etag = BODY, '"two"'

    provider.respond_with("/a", respond_and_change)
    assert await download(provider, file.url, tmp_path / "a") == DownloadedFile('"two"', len(BODY), SHA256)
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize(
    ("status", "content_range"),
    [
        ("206 Partial Content", "bytes 5-9/10"),
        ("206 Partial Content", ""),
        ("416 Range Not Satisfiable", "bytes */10"),
    ],
)
async def test_wrong_range_restarts_the_download(
    provider: LocalServer, tmp_path: Path, status: str, content_range: str
) -> None:
    file = PublishedFile(provider, "/a", BODY, break_after=[1_500_000])
    respond = provider.responders["/a"]

    async def respond_with_wrong_range(writer: asyncio.StreamWriter) -> None:
        if header(provider.heads[-1], "range"):
            head = f"HTTP/1.1 {status}\r\nContent-Range: {content_range}\r\nContent-Length: 5\r\n\r\n"
            writer.write(head.encode() + b"wrong")
        else:
            await respond(writer)

    provider.respond_with("/a", respond_with_wrong_range)
    downloaded = await download(provider, file.url, tmp_path / "a")
    assert downloaded is not None
    assert downloaded.sha256 == SHA256
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("options", [{"etag": '"one"'}, {"etag": 'W/"one"'}, {"etag": None, "last_modified": "a date"}])
async def test_unchanged_file_is_not_downloaded_again(
    provider: LocalServer, tmp_path: Path, options: dict[str, Any]
) -> None:
    file = PublishedFile(provider, "/a", BODY, **options)
    first = await download(provider, file.url, tmp_path / "a")
    assert first is not None
    assert await download(provider, file.url, tmp_path / "b", known_etag=first.etag) is None
    assert not (tmp_path / "b").exists()
    file.etag, file.last_modified = '"two"', None
    assert await download(provider, file.url, tmp_path / "b", known_etag=first.etag) is not None


async def test_busy_server_is_retried(provider: LocalServer, tmp_path: Path) -> None:
    file = PublishedFile(provider, "/a", BODY)
    respond, statuses = provider.responders["/a"], ["503 Service Unavailable", "429 Too Many Requests"]

    async def respond_busy(writer: asyncio.StreamWriter) -> None:
        if statuses:
            writer.write(f"HTTP/1.1 {statuses.pop()}\r\nContent-Length: 0\r\n\r\n".encode())
        else:
            await respond(writer)

    provider.respond_with("/a", respond_busy)
    assert await download(provider, file.url, tmp_path / "a") is not None
    assert len(provider.requested_paths) == 3


async def test_wrong_checksum_is_retried_and_then_fails(provider: LocalServer, tmp_path: Path) -> None:
    file = PublishedFile(provider, "/a", BODY)
    remote_file = RemoteFile(file.url, Provider("Hugging Face", file.url), sha256="0" * 64)
    why = await download_error(provider, remote_file, tmp_path / "a", max_attempts=2)
    assert "checksum" in why
    assert "Hugging Face" in why
    assert file.starts == [0, 0]
    assert await download(provider, RemoteFile(file.url, ANY_HOST, SHA256), tmp_path / "a") is not None


async def test_too_large_content_length_is_rejected_before_the_body(provider: LocalServer, tmp_path: Path) -> None:
    async def announce_20_gb(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20000000000\r\n\r\n")
        await provider.drip(writer, b"x" * 100_000, 0)

    why = await download_error(provider, provider.respond_with("/a", announce_20_gb), tmp_path / "a")
    assert str(2 * 2**30) in why
    assert provider.sent_bytes < 20_000_000, "only as much as the socket buffers hold"


async def test_endless_body_is_cut_off_at_the_limit(provider: LocalServer, tmp_path: Path) -> None:
    url = provider.respond_with("/endless", lambda writer: provider.drip(writer, b"x" * 10_000, 0))
    assert "100000" in await download_error(provider, url, tmp_path / "a", max_bytes=100_000)


async def test_size_limit_covers_all_attempts_together(provider: LocalServer, tmp_path: Path) -> None:
    async def respond_with_growing_file(writer: asyncio.StreamWriter) -> None:
        """Closes each response 10,000 bytes early. Each range has as many bytes as the first response."""
        start = int((header(provider.heads[-1], "range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        status = f"206 Partial Content\r\nContent-Range: bytes {start}-{start + 59_999}/*" if start else "200 OK"
        head = f'HTTP/1.1 {status}\r\nETag: "one"\r\nContent-Length: 60000\r\n\r\n'
        writer.write(head.encode() + b"x" * 50_000)

    url = provider.respond_with("/a", respond_with_growing_file)
    assert "100000" in await download_error(provider, url, tmp_path / "a", max_bytes=100_000)
    assert len(provider.requested_paths) == 2


async def test_stalled_download_fails_after_the_read_timeout(provider: LocalServer, tmp_path: Path) -> None:
    async def stall(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(5)

    why = await download_error(provider, provider.respond_with("/a", stall), tmp_path / "a", read_timeout_s=0.1)
    assert "0.1 s" in why


async def test_slow_download_fails_after_the_total_timeout(provider: LocalServer, tmp_path: Path) -> None:
    url = provider.respond_with("/a", lambda writer: provider.drip(writer, b"x", 0.02))
    assert "0.2 s" in await download_error(provider, url, tmp_path / "a", total_timeout_s=0.2)


async def test_private_address_is_rejected_directly_and_after_a_redirect(
    provider: LocalServer, file_host: LocalServer, tmp_path: Path
) -> None:
    PublishedFile(file_host, "/a", BODY)
    why = await download_error(provider, f"http://127.0.0.1:{file_host.port}/a", tmp_path / "a")
    assert "lora.fetch.allowed_hosts" in why
    url = provider.respond("/r", status="302 Found", Location=f"http://127.0.0.1:{file_host.port}/a")
    redirected = await download_error(provider, url, tmp_path / "a")
    assert "redirect" in redirected
    assert "lora.fetch.allowed_hosts" in redirected
    assert file_host.requested_paths == []


async def test_write_error_does_not_reveal_the_path(provider: LocalServer, tmp_path: Path, logs: Logs) -> None:
    url = PublishedFile(provider, "/a", BODY).url
    why = await download_error(provider, url, tmp_path / "missing" / "a")
    assert "could not be stored" in why
    assert "missing" not in why
    assert "missing" in logs.text


async def test_concurrent_downloads_are_limited(provider: LocalServer, tmp_path: Path) -> None:
    running, peak = 0, 0
    file = PublishedFile(provider, "/a", b"x")
    respond = provider.responders["/a"]

    async def count(writer: asyncio.StreamWriter) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.02)
        running -= 1
        await respond(writer)

    provider.respond_with("/a", count)
    remote_file = RemoteFile(file.url, ANY_HOST)
    async with open_downloader(provider, max_concurrent=2) as downloader:
        await asyncio.gather(*(downloader.download(remote_file, tmp_path / str(i), "a LoRA") for i in range(6)))
    assert peak == 2


async def test_cancelled_download_leaves_no_file(provider: LocalServer, tmp_path: Path) -> None:
    url = provider.respond_with("/a", lambda writer: provider.drip(writer, b"x" * 10_000, 0.001))
    task = asyncio.create_task(download(provider, url, tmp_path / "a"))
    while provider.sent_bytes < 100_000:
        await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert not (tmp_path / "a").exists()


def hugging_face(server: LocalServer, token: str | None = None) -> Provider:
    base_url = f"http://127.0.0.1:{server.port}"
    return Provider(
        "Hugging Face", base_url, "HF_TOKEN", SecretStr(token) if token else None, {"GatedRepo": "it is gated"}
    )


async def test_token_is_not_sent_to_other_origins_or_after_a_redirect_back(
    provider: LocalServer, file_host: LocalServer, tmp_path: Path
) -> None:
    PublishedFile(provider, "/back", BODY)
    file_host.respond("/away", status="302 Found", Location=f"http://127.0.0.1:{provider.port}/back")
    provider.respond("/inside", status="302 Found", Location=f"http://127.0.0.1:{file_host.port}/away")
    url = provider.respond("/start", status="302 Found", Location="/inside")
    async with open_downloader(provider, file_host) as downloader:
        await downloader.download(RemoteFile(url, hugging_face(provider, TOKEN)), tmp_path / "a", "the LoRA")
    bearer = f"Bearer {TOKEN}"
    assert requests_with_header(provider, "authorization") == [("/start", bearer), ("/inside", bearer), ("/back", None)]
    assert requests_with_header(file_host, "authorization") == [("/away", None)]


async def test_token_is_not_sent_to_other_hosts(provider: LocalServer, file_host: LocalServer, tmp_path: Path) -> None:
    file = PublishedFile(file_host, "/a", BODY)
    async with open_downloader(provider, file_host) as downloader:
        await downloader.download(RemoteFile(file.url, hugging_face(provider, TOKEN)), tmp_path / "a", "the LoRA")
    assert requests_with_header(file_host, "authorization") == [("/a", None)]


ERROR_RESPONSES: list[tuple[str, dict[str, str], str | None, tuple[str, ...]]] = [
    ("401 Unauthorized", {}, None, ("401 Unauthorized", "Hugging Face account", "operator", "HF_TOKEN")),
    ("403 Forbidden", {}, TOKEN, ("403 Forbidden", "HF_TOKEN", "no access")),
    ("401 Unauthorized", {"X-Error-Code": "GatedRepo"}, None, ("401 Unauthorized", "gated", "operator", "HF_TOKEN")),
    ("404 Not Found", {}, None, ("404 Not Found", "spelling")),
    ("404 Not Found", {"X-Error-Code": "GatedRepo"}, None, ("404 Not Found", "gated")),
    ("206 Partial Content", {}, None, ("range",)),
]


@pytest.mark.parametrize(("status", "headers", "token", "words"), ERROR_RESPONSES)
async def test_error_response_is_reported_with_a_hint(
    provider: LocalServer,
    tmp_path: Path,
    status: str,
    headers: dict[str, str],
    token: str | None,
    words: tuple[str, ...],
) -> None:
    url = provider.respond("/a", status, b"", **headers)
    file = RemoteFile(url, hugging_face(provider, token))
    why = await download_error(provider, file, tmp_path / "a", max_attempts=1)
    assert [word for word in words if word not in why] == []


@pytest.mark.parametrize("status", ["410 Gone", "302 Found", "204 No Content"])
async def test_other_error_responses_have_no_hint(provider: LocalServer, tmp_path: Path, status: str) -> None:
    file = RemoteFile(provider.respond("/a", status), hugging_face(provider))
    assert (await download_error(provider, file, tmp_path / "a", max_attempts=1)).endswith(status)


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_url_that_requires_authentication_is_rejected(provider: LocalServer, tmp_path: Path, status: str) -> None:
    why = await download_error(provider, provider.respond("/a", status=status), tmp_path / "a")
    assert status in why
    assert "without authentication" in why


async def test_redirect_to_a_login_page_is_an_error(provider: LocalServer, tmp_path: Path) -> None:
    provider.respond("/login", body=b"<html>", Content_Type="text/html; charset=utf-8")
    location = "/login?returnUrl=%2Fa&reason=download-auth"
    url = provider.respond("/a", status="307 Temporary Redirect", Location=location)
    why = await download_error(provider, RemoteFile(url, hugging_face(provider)), tmp_path / "a")
    assert "login" in why
    assert "Hugging Face account" in why


async def test_token_is_in_no_error_and_no_log(provider: LocalServer, tmp_path: Path, logs: Logs) -> None:
    logging.getLogger().setLevel(logging.DEBUG)
    file = RemoteFile(provider.respond("/a?sig=query", status="403 Forbidden"), hugging_face(provider, TOKEN))
    provider.respond("/a", status="403 Forbidden")
    for path in (tmp_path / "a", tmp_path / "missing" / "a"):
        with pytest.raises(FetchFailed) as caught:
            await download(provider, file, path)
        provider.respond("/a", body=b"x")
        error: BaseException | None = caught.value
        while error:
            assert TOKEN not in f"{error!r} {error}"
            error = error.__cause__
    assert TOKEN not in logs.text
    assert TOKEN not in repr(file)
    assert header(provider.heads[0], "authorization") == f"Bearer {TOKEN}"


async def fetch_json(server: LocalServer, url: str) -> Any:
    async with open_downloader(server) as downloader:
        return await downloader.fetch_json(RemoteFile(url, hugging_face(server, TOKEN)), "the LoRA")


async def test_json_is_fetched_with_the_token(provider: LocalServer) -> None:
    assert await fetch_json(provider, provider.respond("/a", body=b'{"a": [1]}')) == {"a": [1]}
    assert requests_with_header(provider, "authorization") == [("/a", f"Bearer {TOKEN}")]


@pytest.mark.parametrize(
    ("publish", "word"),
    [
        (lambda server: server.respond("/a", body=b"<html>"), "JSON"),
        (lambda server: server.respond("/a", body=b"[" * 100_000), "JSON"),
        (lambda server: server.respond("/a", status="404 Not Found"), "404 Not Found.*spelling"),
        (lambda server: server.respond("/a", body=b"x" * (16 * 2**20 + 1)), str(16 * 2**20)),
    ],
    ids=["HTML", "deeply nested", "404", "too large"],
)
async def test_invalid_json_document_is_an_error(
    provider: LocalServer, publish: Callable[[LocalServer], str], word: str
) -> None:
    with pytest.raises(FetchFailed, match=word):
        await fetch_json(provider, publish(provider))
