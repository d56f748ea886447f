"""What goes along over redirects: headers everywhere, secrets at home only, and nothing in plain text unasked."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from serve.net.http_client import HttpClient, RequestFailed, origin
from serve.settings import FetchSettings
from tests.local_server import LocalServer, Names, certificate
from tests.unit.net.test_url_fetcher import TRUSTS_NOBODY


@pytest.fixture
async def home() -> AsyncIterator[LocalServer]:
    server = LocalServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def away() -> AsyncIterator[LocalServer]:
    server = LocalServer()
    await server.start()
    yield server
    await server.stop()


async def body(transport: HttpClient, url: str, limit_bytes: int = 100, received: int = 0) -> bytes:
    headers, secrets = {"If-None-Match": "tag"}, {"Authorization": "Bearer sesame"}
    try:
        async with transport.get(httpx.URL(url), headers, secrets) as answer:
            return b"".join([chunk async for chunk in answer.body(limit_bytes, received)])
    finally:
        transport.close()


async def test_secrets_end_at_the_first_other_host_and_headers_go_on(home: LocalServer, away: LocalServer) -> None:
    home.answer("/end", body=b"there")
    away.answer("/b", status="302 Found", Location=f"http://127.0.0.1:{home.port}/end")
    home.answer("/a", status="302 Found", Location=f"http://127.0.0.1:{away.port}/b")
    url = home.answer("/start", status="307 Temporary Redirect", Location="/a")
    transport = HttpClient(FetchSettings(allowed_hosts=("127.0.0.1",)), None, TRUSTS_NOBODY)
    assert await body(transport, url) == b"there"
    assert ["Bearer sesame" in head for head in home.heads] == [True, True, False]
    assert ["Bearer sesame" in head for head in away.heads] == [False]
    assert all("If-None-Match: tag" in head for head in home.heads + away.heads)


@pytest.mark.parametrize("downgrade", [True, False])
async def test_a_redirect_to_plain_http_needs_leave(tmp_path: Path, away: LocalServer, downgrade: bool) -> None:
    server_side, client_side = certificate(tmp_path, "files.test")
    secure = LocalServer()
    await secure.start(server_side)
    secure.answer("/a", status="302 Found", Location=away.answer("/b", body=b"plain"))
    settings = FetchSettings(allowed_hosts=("127.0.0.1",))
    names = Names(files_test=[["127.0.0.1"]], **{"127_0_0_1": [["127.0.0.1"]]})
    transport = HttpClient(settings, names, client_side, downgrade=downgrade)
    url = f"https://files.test:{secure.port}/a"
    if downgrade:
        assert await body(transport, url) == b"plain"
    else:
        with pytest.raises(RequestFailed, match="it redirects from https to plain http"):
            await body(transport, url)
        assert away.asked == []
    await secure.stop()


async def test_a_refused_address_names_the_setting_that_allows_it(home: LocalServer) -> None:
    transport = HttpClient(FetchSettings(), None, TRUSTS_NOBODY, name="lora.fetch")
    with pytest.raises(RequestFailed, match=r"by lora\.fetch\.allowed_hosts$"):
        await body(transport, home.answer("/a", body=b"x"))


async def test_the_limit_counts_what_was_received_before(home: LocalServer) -> None:
    url = home.answer("/a", body=b"x" * 60)
    claimed = home.answer("/claimed", body=b"", Content_Length=60)
    settings = FetchSettings(allowed_hosts=("127.0.0.1",))
    assert len(await body(HttpClient(settings, None, TRUSTS_NOBODY), url, received=40)) == 60
    with pytest.raises(RequestFailed, match="it has more than 100 bytes"):
        await body(HttpClient(settings, None, TRUSTS_NOBODY), claimed, received=41)
    unsized = home.answer("/b", body=b"x" * 60, Content_Length="")
    with pytest.raises(RequestFailed, match="it has more than 100 bytes"):
        await body(HttpClient(settings, None, TRUSTS_NOBODY), unsized, received=41)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.test/x", "https://a.test:443/y?z", True),
        ("http://a.test", "http://a.test:80", True),
        ("http://a.test", "https://a.test", False),
        ("https://a.test", "https://a.test:444", False),
        ("https://a.test", "https://b.a.test", False),
    ],
)
def test_who_is_asked_is_told_by_scheme_host_and_port(one: str, other: str, same: bool) -> None:
    assert (origin(httpx.URL(one)) == origin(httpx.URL(other))) is same
