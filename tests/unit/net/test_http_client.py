"""Headers and secrets across redirects, downgrades to http, and limits of the HTTP client."""

import asyncio
from pathlib import Path

import httpx
import pytest

from serve.net.http_client import HttpClient, RequestFailed, origin
from serve.settings import FetchSettings
from tests.local_server import EMPTY_TRUST_STORE, FakeResolver, LocalServer, make_tls_contexts

ALLOW_LOOPBACK = FetchSettings(allowed_hosts=("127.0.0.1",))


async def get_body(client: HttpClient, url: str, max_bytes: int = 100, received_bytes: int = 0) -> bytes:
    """Requests `url` with a header and a secret, and closes `client`."""
    headers, secrets = {"If-None-Match": "tag"}, {"Authorization": "Bearer sesame"}
    try:
        async with client.get(httpx.URL(url), headers, secrets) as response:
            return b"".join([chunk async for chunk in response.body(max_bytes, received_bytes)])
    finally:
        client.close()


async def test_redirect_to_another_origin_drops_secrets_and_keeps_headers(
    server: LocalServer, other_server: LocalServer
) -> None:
    server.respond("/end", body=b"there")
    other_server.respond("/b", status="302 Found", Location=f"http://127.0.0.1:{server.port}/end")
    server.respond("/a", status="302 Found", Location=f"http://127.0.0.1:{other_server.port}/b")
    url = server.respond("/start", status="307 Temporary Redirect", Location="/a")
    assert await get_body(HttpClient(ALLOW_LOOPBACK, None, EMPTY_TRUST_STORE), url) == b"there"
    assert ["Bearer sesame" in head for head in server.heads] == [True, True, False]
    assert ["Bearer sesame" in head for head in other_server.heads] == [False]
    assert all("If-None-Match: tag" in head for head in server.heads + other_server.heads)


@pytest.mark.parametrize("downgrade", [True, False])
async def test_redirect_from_https_to_http_requires_downgrade(
    tmp_path: Path, other_server: LocalServer, downgrade: bool
) -> None:
    server_context, client_context = make_tls_contexts(tmp_path, "files.test")
    https_server = LocalServer()
    await https_server.start(server_context)
    https_server.respond("/a", status="302 Found", Location=other_server.respond("/b", body=b"plain"))
    resolver = FakeResolver(files_test=[["127.0.0.1"]], **{"127_0_0_1": [["127.0.0.1"]]})
    client = HttpClient(ALLOW_LOOPBACK, resolver, client_context, allow_downgrade=downgrade)
    url = f"https://files.test:{https_server.port}/a"
    if downgrade:
        assert await get_body(client, url) == b"plain"
    else:
        with pytest.raises(RequestFailed, match="plain http"):
            await get_body(client, url)
        assert other_server.requested_paths == []
    await https_server.stop()


async def test_private_address_error_names_the_allowed_hosts_setting(server: LocalServer) -> None:
    client = HttpClient(FetchSettings(), None, EMPTY_TRUST_STORE, settings_name="lora.fetch")
    with pytest.raises(RequestFailed, match=r"lora\.fetch\.allowed_hosts"):
        await get_body(client, server.respond("/a", body=b"x"))


async def test_received_bytes_count_towards_the_limit(server: LocalServer) -> None:
    url = server.respond("/a", body=b"x" * 60)
    with_length_only = server.respond("/length", body=b"", Content_Length=60)
    without_length = server.respond("/b", body=b"x" * 60, Content_Length="")

    def client() -> HttpClient:
        return HttpClient(ALLOW_LOOPBACK, None, EMPTY_TRUST_STORE)

    assert len(await get_body(client(), url, received_bytes=40)) == 60
    for too_large in (with_length_only, without_length):
        with pytest.raises(RequestFailed, match="100 bytes"):
            await get_body(client(), too_large, received_bytes=41)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("https://a.test/x", "https://a.test:443/y?z", True),
        ("http://a.test", "http://a.test:80", True),
        ("http://a.test", "https://a.test", False),
        ("https://a.test", "https://a.test:444", False),
        ("https://a.test", "https://b.a.test", False),
    ],
)
def test_origin_is_scheme_host_and_port(first: str, second: str, same: bool) -> None:
    assert (origin(httpx.URL(first)) == origin(httpx.URL(second))) is same


async def post(client: HttpClient, url: str) -> int:
    try:
        return await client.post(httpx.URL(url), b"a body", {"X-Test": "1"})
    finally:
        client.close()


async def test_post_sends_headers_and_content_length(server: LocalServer) -> None:
    url = server.respond("/a", status="202 Accepted")
    assert await post(HttpClient(ALLOW_LOOPBACK, None, EMPTY_TRUST_STORE), url) == 202
    [head] = server.heads
    assert head.startswith("POST /a ")
    assert "X-Test: 1" in head
    assert "Content-Length: 6" in head


async def test_post_follows_no_redirect(server: LocalServer) -> None:
    server.respond("/b")
    url = server.respond("/a", status="302 Found", Location="/b")
    assert await post(HttpClient(ALLOW_LOOPBACK, None, EMPTY_TRUST_STORE), url) == 302
    assert server.requested_paths == ["/a"]


async def test_post_reads_no_response_body(server: LocalServer) -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        await server.drip(writer, b"x" * 2**16, 0.001)

    url = server.respond_with("/a", endless)
    assert await asyncio.wait_for(post(HttpClient(ALLOW_LOOPBACK, None, EMPTY_TRUST_STORE), url), 5) == 200


async def test_post_to_a_private_address_is_refused(server: LocalServer) -> None:
    url = server.respond("/a")
    with pytest.raises(RequestFailed, match="not public"):
        await post(HttpClient(FetchSettings(), None, EMPTY_TRUST_STORE), url)
    assert server.requested_paths == []
