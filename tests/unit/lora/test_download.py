"""Downloads from a real server: whole or not at all, resumed where that is sure, and no secret told to strangers."""

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
from serve.lora.download import Download, Downloader, Progress
from serve.lora.provider import ANY_HOST, Provider, RemoteFile
from tests.local_server import LocalServer
from tests.logs import Logs
from tests.unit.lora.fake_providers import PublishedFile, asked_with, header, settings_for
from tests.unit.net.test_url_fetcher import TRUSTS_NOBODY

BODY = os.urandom(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@asynccontextmanager
async def downloader_for(*servers: LocalServer, **fetch: Any) -> AsyncIterator[Downloader]:
    downloader = Downloader(settings_for(*servers, fetch=fetch), tls=TRUSTS_NOBODY)
    try:
        yield downloader
    finally:
        downloader.close()


async def save(
    server: LocalServer,
    address: RemoteFile | str,
    path: Path,
    known_tag: str | None = None,
    progress: Progress | None = None,
    **fetch: Any,
) -> Download | None:
    address = RemoteFile(address, ANY_HOST) if isinstance(address, str) else address
    async with downloader_for(server, **fetch) as downloader:
        return await downloader.save(address, path, "the LoRA", known_tag, progress)


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


async def failure(server: LocalServer, address: RemoteFile | str, path: Path, **fetch: Any) -> str:
    with pytest.raises(FetchFailed) as caught:
        await save(server, address, path, **fetch)
    assert path.name not in files_in(path.parent), "a file that is not whole never has its name"
    assert caught.value.what == "the LoRA"
    return caught.value.why


async def test_a_file_arrives_as_it_is(site: LocalServer, tmp_path: Path) -> None:
    file = PublishedFile(site, "/a.safetensors", BODY)
    saved = await save(site, file.url, tmp_path / "a")
    assert saved == Download('"one"', len(BODY), SHA256)
    assert (tmp_path / "a").read_bytes() == BODY
    assert files_in(tmp_path) == ["a"]


async def test_progress_is_told_to_the_end(site: LocalServer, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    await save(site, PublishedFile(site, "/a", BODY).url, tmp_path / "a", progress=lambda *now: told.append(now))
    assert told[-1] == (len(BODY), len(BODY))
    assert told == sorted(told)


async def test_what_broke_off_goes_on_where_it_was(site: LocalServer, tmp_path: Path) -> None:
    file = PublishedFile(site, "/a", BODY, breaks=[1_500_000, 700_000])
    told: list[tuple[int, int | None]] = []
    saved = await save(site, file.url, tmp_path / "a", progress=lambda *now: told.append(now))
    assert saved == Download('"one"', len(BODY), SHA256)
    assert file.starts == [0, 1_500_000, 2_200_000]
    assert {total for _, total in told} == {len(BODY)}


@pytest.mark.parametrize(
    "published",
    [{"ranges": False}, {"tag": None}, {"tag": 'W/"one"'}],
    ids=["a server without ranges", "without a tag", "with a weak tag"],
)
async def test_what_broke_off_begins_anew_where_going_on_is_not_sure(
    site: LocalServer, tmp_path: Path, published: dict[str, Any]
) -> None:
    file = PublishedFile(site, "/a", BODY, breaks=[1_500_000], **published)
    saved = await save(site, file.url, tmp_path / "a")
    assert saved is not None
    assert saved.sha256 == SHA256
    assert file.starts == [0, 0]
    assert (tmp_path / "a").read_bytes() == BODY


async def test_a_date_is_enough_to_go_on(site: LocalServer, tmp_path: Path) -> None:
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    file = PublishedFile(site, "/a", BODY, tag=None, date=date, breaks=[1_000_000])
    assert await save(site, file.url, tmp_path / "a") == Download(date, len(BODY), SHA256)
    assert file.starts == [0, 1_000_000]


async def test_a_file_that_changed_in_between_is_not_mixed_with_what_it_was(site: LocalServer, tmp_path: Path) -> None:
    file = PublishedFile(site, "/a", b"old" * 1_000_000, breaks=[1_500_000])
    answer = site.answers["/a"]

    async def change(writer: asyncio.StreamWriter) -> None:
        await answer(writer)
        file.body, file.tag = BODY, '"two"'

    site.behave("/a", change)
    assert await save(site, file.url, tmp_path / "a") == Download('"two"', len(BODY), SHA256)
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize(
    ("status", "part"),
    [
        ("206 Partial Content", "bytes 5-9/10"),
        ("206 Partial Content", ""),
        ("416 Range Not Satisfiable", "bytes */10"),
    ],
)
async def test_a_wrong_part_makes_it_begin_anew(site: LocalServer, tmp_path: Path, status: str, part: str) -> None:
    file = PublishedFile(site, "/a", BODY, breaks=[1_500_000])
    answer = site.answers["/a"]

    async def confused(writer: asyncio.StreamWriter) -> None:
        if header(site.heads[-1], "range"):
            writer.write(f"HTTP/1.1 {status}\r\nContent-Range: {part}\r\nContent-Length: 5\r\n\r\nwrong".encode())
        else:
            await answer(writer)

    site.behave("/a", confused)
    saved = await save(site, file.url, tmp_path / "a")
    assert saved is not None
    assert saved.sha256 == SHA256
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("published", [{"tag": '"one"'}, {"tag": 'W/"one"'}, {"tag": None, "date": "a date"}])
async def test_what_is_still_the_same_is_not_sent_again(
    site: LocalServer, tmp_path: Path, published: dict[str, Any]
) -> None:
    file = PublishedFile(site, "/a", BODY, **published)
    first = await save(site, file.url, tmp_path / "a")
    assert first is not None
    assert await save(site, file.url, tmp_path / "b", known_tag=first.etag) is None
    assert not (tmp_path / "b").exists()
    file.tag, file.date = '"two"', None
    assert await save(site, file.url, tmp_path / "b", known_tag=first.etag) is not None


async def test_a_busy_server_is_asked_again(site: LocalServer, tmp_path: Path) -> None:
    file = PublishedFile(site, "/a", BODY)
    answer, left = site.answers["/a"], ["503 Service Unavailable", "429 Too Many Requests"]

    async def busy(writer: asyncio.StreamWriter) -> None:
        if left:
            writer.write(f"HTTP/1.1 {left.pop()}\r\nContent-Length: 0\r\n\r\n".encode())
        else:
            await answer(writer)

    site.behave("/a", busy)
    assert await save(site, file.url, tmp_path / "a") is not None
    assert len(site.asked) == 3


async def test_a_wrong_checksum_is_tried_again_and_then_a_failure(site: LocalServer, tmp_path: Path) -> None:
    file = PublishedFile(site, "/a", BODY)
    address = RemoteFile(file.url, Provider("Hugging Face", file.url), sha256="0" * 64)
    why = await failure(site, address, tmp_path / "a", max_attempts=2)
    assert why == "its checksum is not the one that Hugging Face lists"
    assert file.starts == [0, 0]
    assert await save(site, RemoteFile(file.url, ANY_HOST, SHA256), tmp_path / "a") is not None


async def test_a_body_of_twenty_gigabytes_is_not_begun(site: LocalServer, tmp_path: Path) -> None:
    async def announce(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20000000000\r\n\r\n")
        await site.drip(writer, b"x" * 100_000, 0)

    why = await failure(site, site.behave("/a", announce), tmp_path / "a")
    assert why == f"it has more than {2 * 2**30} bytes"
    assert site.sent_bytes < 20_000_000, "what the sockets between hold, and no more"


async def test_an_endless_body_is_cut_off(site: LocalServer, tmp_path: Path) -> None:
    url = site.behave("/endless", lambda writer: site.drip(writer, b"x" * 10_000, 0))
    assert await failure(site, url, tmp_path / "a", max_bytes=100_000) == "it has more than 100000 bytes"


async def test_the_limit_is_for_all_answers_together(site: LocalServer, tmp_path: Path) -> None:
    async def grow(writer: asyncio.StreamWriter) -> None:
        """Breaks off before the end that it tells, and has as much again when it is asked for the rest."""
        start = int((header(site.heads[-1], "range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        part = f"206 Partial Content\r\nContent-Range: bytes {start}-{start + 59_999}/*" if start else "200 OK"
        head = f'HTTP/1.1 {part}\r\nETag: "one"\r\nContent-Length: 60000\r\n\r\n'
        writer.write(head.encode() + b"x" * 50_000)

    why = await failure(site, site.behave("/a", grow), tmp_path / "a", max_bytes=100_000)
    assert why == "it has more than 100000 bytes"
    assert len(site.asked) == 2


async def test_a_server_that_stalls_is_left(site: LocalServer, tmp_path: Path) -> None:
    async def stall(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(5)

    why = await failure(site, site.behave("/a", stall), tmp_path / "a", read_timeout_s=0.1)
    assert why == "its server sent nothing for 0.1 s"


async def test_a_server_that_drips_is_left_after_the_total_time(site: LocalServer, tmp_path: Path) -> None:
    url = site.behave("/a", lambda writer: site.drip(writer, b"x", 0.02))
    assert await failure(site, url, tmp_path / "a", total_timeout_s=0.2) == "it was not complete after 0.2 s"


async def test_a_private_address_is_refused_first_and_after_a_redirect(
    site: LocalServer, store: LocalServer, tmp_path: Path
) -> None:
    PublishedFile(store, "/a", BODY)
    why = "its address is not public; the operator can allow named hosts by lora.fetch.allowed_hosts"
    assert await failure(site, f"http://127.0.0.1:{store.port}/a", tmp_path / "a") == why
    url = site.answer("/r", status="302 Found", Location=f"http://127.0.0.1:{store.port}/a")
    assert await failure(site, url, tmp_path / "a") == f"after a redirect, {why}"
    assert store.asked == []


async def test_a_disk_that_takes_nothing_fails_without_a_path(site: LocalServer, tmp_path: Path, logs: Logs) -> None:
    why = await failure(site, PublishedFile(site, "/a", BODY).url, tmp_path / "missing" / "a")
    assert why == "it could not be stored; the operator's log has the cause"
    assert "missing" in logs.text


async def test_only_so_many_downloads_run_at_once(site: LocalServer, tmp_path: Path) -> None:
    running, most = 0, 0
    file = PublishedFile(site, "/a", b"x")
    answer = site.answers["/a"]

    async def count(writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        await answer(writer)

    site.behave("/a", count)
    async with downloader_for(site, max_concurrent=2) as downloader:
        each = (downloader.save(RemoteFile(file.url, ANY_HOST), tmp_path / str(number), "one") for number in range(6))
        await asyncio.gather(*each)
    assert most == 2


async def test_a_cancelled_download_ends_at_once(site: LocalServer, tmp_path: Path) -> None:
    url = site.behave("/a", lambda writer: site.drip(writer, b"x" * 10_000, 0.001))
    task = asyncio.create_task(save(site, url, tmp_path / "a"))
    while site.sent_bytes < 100_000:
        await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert not (tmp_path / "a").exists()


def hub(server: LocalServer, token: str | None = None) -> Provider:
    base = f"http://127.0.0.1:{server.port}"
    return Provider("Hugging Face", base, "HF_TOKEN", SecretStr(token) if token else None, {"GatedRepo": "it is gated"})


async def test_a_credential_goes_to_its_site_and_not_across_a_redirect(
    site: LocalServer, store: LocalServer, tmp_path: Path
) -> None:
    PublishedFile(site, "/back", BODY)
    store.answer("/away", status="302 Found", Location=f"http://127.0.0.1:{site.port}/back")
    site.answer("/inside", status="302 Found", Location=f"http://127.0.0.1:{store.port}/away")
    url = site.answer("/start", status="302 Found", Location="/inside")
    async with downloader_for(site, store) as downloader:
        await downloader.save(RemoteFile(url, hub(site, "sesame")), tmp_path / "a", "the LoRA")
    bearer = "Bearer sesame"
    assert asked_with(site, "authorization") == [("/start", bearer), ("/inside", bearer), ("/back", None)]
    assert asked_with(store, "authorization") == [("/away", None)]


async def test_a_credential_is_not_for_another_host_under_the_same_site(
    site: LocalServer, store: LocalServer, tmp_path: Path
) -> None:
    file = PublishedFile(store, "/a", BODY)
    async with downloader_for(site, store) as downloader:
        await downloader.save(RemoteFile(file.url, hub(site, "sesame")), tmp_path / "a", "the LoRA")
    assert asked_with(store, "authorization") == [("/a", None)]


REFUSALS: list[tuple[str, dict[str, str], str | None, str]] = [
    (
        "401 Unauthorized",
        {},
        None,
        "401 Unauthorized; it needs an account at Hugging Face: the operator of this service can set HF_TOKEN",
    ),
    ("403 Forbidden", {}, "sesame", "403 Forbidden; the account of this service's HF_TOKEN may not read it"),
    (
        "401 Unauthorized",
        {"X-Error-Code": "GatedRepo"},
        None,
        "401 Unauthorized; it is gated; it needs an account at Hugging Face: "
        "the operator of this service can set HF_TOKEN",
    ),
    ("404 Not Found", {}, None, "404 Not Found; check how it is written"),
    ("404 Not Found", {"X-Error-Code": "GatedRepo"}, None, "404 Not Found; it is gated"),
    ("410 Gone", {}, None, "410 Gone"),
    ("302 Found", {}, None, "302 Found"),
    ("204 No Content", {}, None, "204 No Content"),
    ("206 Partial Content", {}, None, "another part than it was asked for"),
]


@pytest.mark.parametrize(("status", "headers", "token", "why"), REFUSALS)
async def test_a_refusal_says_what_to_do(
    site: LocalServer, tmp_path: Path, status: str, headers: dict[str, str], token: str | None, why: str
) -> None:
    url = site.answer("/a", status, b"", **headers)
    found = await failure(site, RemoteFile(url, hub(site, token)), tmp_path / "a", max_attempts=1)
    assert found.endswith(why)


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_a_host_without_a_credential_must_be_readable_by_all(
    site: LocalServer, tmp_path: Path, status: str
) -> None:
    found = await failure(site, site.answer("/a", status=status), tmp_path / "a")
    assert found == f"its server answered {status}; it must be readable without signing in"


async def test_a_page_to_sign_in_is_no_file(site: LocalServer, tmp_path: Path) -> None:
    site.answer("/login", body=b"<html>", Content_Type="text/html; charset=utf-8")
    url = site.answer("/a", status="307 Temporary Redirect", Location="/login?returnUrl=%2Fa&reason=download-auth")
    found = await failure(site, RemoteFile(url, hub(site)), tmp_path / "a")
    assert found.startswith("its server asks to sign in; it needs an account at Hugging Face: the operator")


async def test_no_secret_is_in_an_error_or_a_log(site: LocalServer, tmp_path: Path, logs: Logs) -> None:
    logging.getLogger().setLevel(logging.DEBUG)
    address = RemoteFile(site.answer("/a?sig=query", status="403 Forbidden"), hub(site, "sesame"))
    site.answer("/a", status="403 Forbidden")
    for path in (tmp_path / "a", tmp_path / "missing" / "a"):
        with pytest.raises(FetchFailed) as caught:
            await save(site, address, path)
        site.answer("/a", body=b"x")
        error: BaseException | None = caught.value
        while error:
            assert "sesame" not in f"{error!r} {error}"
            error = error.__cause__
    assert "sesame" not in logs.text
    assert "sesame" not in repr(address)
    assert header(site.heads[0], "authorization") == "Bearer sesame"


async def document(server: LocalServer, url: str) -> Any:
    async with downloader_for(server) as downloader:
        return await downloader.fetch_json(RemoteFile(url, hub(server, "sesame")), "the LoRA")


async def test_a_document_is_read_with_the_credential(site: LocalServer) -> None:
    assert await document(site, site.answer("/a", body=b'{"a": [1]}')) == {"a": [1]}
    assert asked_with(site, "authorization") == [("/a", "Bearer sesame")]


@pytest.mark.parametrize(
    ("publish", "why"),
    [
        (lambda site: site.answer("/a", body=b"<html>"), "Hugging Face answered with something that is no JSON"),
        (lambda site: site.answer("/a", body=b"[" * 100_000), "Hugging Face answered with something that is no JSON"),
        (lambda site: site.answer("/a", status="404 Not Found"), "404 Not Found; check how it is written"),
        (lambda site: site.answer("/a", body=b"x" * (16 * 2**20 + 1)), f"it has more than {16 * 2**20} bytes"),
    ],
)
async def test_a_document_that_is_none_is_a_failure(
    site: LocalServer, publish: Callable[[LocalServer], str], why: str
) -> None:
    with pytest.raises(FetchFailed, match=why):
        await document(site, publish(site))
