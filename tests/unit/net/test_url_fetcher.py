"""`UrlFetcher` with servers on loopback: SSRF protection, redirects, limits, timeouts, retries and TLS."""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from serve.errors import FetchFailed
from serve.net.http_client import HttpClient
from serve.net.ssrf_guard import Resolver
from serve.net.url_fetcher import UrlFetcher
from serve.settings import FetchSettings
from tests.local_server import EMPTY_TRUST_STORE, FakeResolver, LocalServer, local_server, make_tls_contexts


class FetcherFactory:
    """Creates fetchers that may connect to `allowed_servers`, although these are on loopback."""

    def __init__(self) -> None:
        self._clients: list[HttpClient] = []

    def __call__(
        self,
        *allowed_servers: LocalServer,
        resolver: Resolver | None = None,
        tls: ssl.SSLContext = EMPTY_TRUST_STORE,
        **settings: object,
    ) -> UrlFetcher:
        allowed_hosts = tuple(f"127.0.0.1:{server.port}" for server in allowed_servers)
        fetch = FetchSettings.model_validate({"backoff_s": 0.001, "allowed_hosts": allowed_hosts, **settings})
        client = HttpClient(fetch, resolver, tls)
        self._clients.append(client)
        return UrlFetcher(fetch, client)

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def make_fetcher() -> Iterator[FetcherFactory]:
    factory = FetcherFactory()
    yield factory
    factory.close()


async def fetch_error(fetcher: UrlFetcher, url: str) -> FetchFailed:
    """Fetches `url`, which must fail, and returns the error."""
    with pytest.raises(FetchFailed) as caught:
        await fetcher.fetch(url)
    return caught.value


async def test_file_is_returned_unchanged(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    body = bytes(range(256)) * 1000
    assert await make_fetcher(server).fetch(server.respond("/a.png", body=body)) == body


async def test_body_without_length_or_in_chunks_is_read_completely(
    server: LocalServer, make_fetcher: FetcherFactory
) -> None:
    without_length = server.respond("/without-length", body=b"to the end", Content_Length="")
    chunked = server.respond(
        "/chunked", body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", Content_Length="", Transfer_Encoding="chunked"
    )
    assert await make_fetcher(server).fetch(without_length) == b"to the end"
    assert await make_fetcher(server).fetch(chunked) == b"abcde"


async def test_request_has_host_encoding_and_user_agent_headers(
    server: LocalServer, make_fetcher: FetcherFactory
) -> None:
    await make_fetcher(server).fetch(server.respond("/a", body=b"x"))
    head = server.heads[0].lower()
    assert f"host: 127.0.0.1:{server.port}\r\n" in head
    assert "accept-encoding: identity\r\n" in head
    assert "user-agent: flux-serve/" in head


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0X7F.0.0.0x1",
        "017700000001",
        "127。0。0。1",
        "0",
        "0.0.0.0",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "169.254.169.254",
        "0xa9fea9fe",
        "168.63.129.16",
        "192.168.0.1",
        "10.1",
    ],
)
async def test_private_address_is_rejected_in_every_spelling(
    server: LocalServer, make_fetcher: FetcherFactory, host: str
) -> None:
    server.respond("/a", body=b"secret")
    error = await fetch_error(make_fetcher(), f"http://{host}:{server.port}/a")
    assert "not public" in error.why
    assert server.requested_paths == []


@pytest.mark.parametrize("host", ["[fe80::1%25lo]", "[::1%25lo]", "a..b", "a" * 70 + ".com"])
async def test_invalid_host_fails_with_reason(make_fetcher: FetcherFactory, host: str) -> None:
    error = await fetch_error(make_fetcher(max_attempts=1), f"http://{host}/a")
    assert re.search("valid URL|resolved|public", error.why)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["8.8.8.8", "::1"], ["fe80::1%2"]])
async def test_host_with_one_private_address_is_rejected(
    server: LocalServer, make_fetcher: FetcherFactory, addresses: list[str]
) -> None:
    server.respond("/a", body=b"secret")
    resolver = FakeResolver(images_test=[addresses])
    error = await fetch_error(make_fetcher(resolver=resolver), f"http://images.test:{server.port}/a")
    assert "not public" in error.why
    assert resolver.resolved == ["images.test"]
    assert server.requested_paths == []


async def test_host_is_checked_again_for_each_attempt(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    server.respond("/a", status="503 Busy")
    resolver = FakeResolver(images_test=[["127.0.0.1"], ["169.254.169.254"]])
    error = await fetch_error(make_fetcher(server, resolver=resolver), f"http://images.test:{server.port}/a")
    assert "not public" in error.why
    assert server.requested_paths == ["/a"]


async def test_allowed_host_may_have_private_address(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    server.respond("/a", body=b"inside")
    resolver = FakeResolver(store_local=[["127.0.0.1"]])
    fetcher = make_fetcher(resolver=resolver, allowed_hosts=("store.local",))
    assert await fetcher.fetch(f"http://store.local:{server.port}/a") == b"inside"
    assert f"Host: store.local:{server.port}\r\n" in server.heads[0]


async def test_allowed_host_with_port_does_not_allow_other_ports(
    server: LocalServer, other_server: LocalServer, make_fetcher: FetcherFactory
) -> None:
    error = await fetch_error(make_fetcher(server), other_server.respond("/a", body=b"secret"))
    assert "not public" in error.why
    assert other_server.requested_paths == []


async def test_relative_and_absolute_redirects_are_followed(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    end = server.respond("/end", body=b"there")
    server.respond("/next", status="307 Temporary Redirect", Location=end)
    start = server.respond("/start", status="302 Found", Location="next#part")
    assert await make_fetcher(server).fetch(start) == b"there"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.1:{other}/a", "not public"),
        ("http://localhost:{other}/a", "not public"),
        ("http://169.254.169.254/latest/meta-data/", "not public"),
        ("//[::1]:{other}/a", "not public"),
        ("file:///etc/passwd", "http and https"),
        ("http://me:secret@127.0.0.1:{other}/a", "password"),
        ("http://[::1/", "valid URL"),
    ],
)
async def test_redirect_target_is_checked_like_the_first_url(
    server: LocalServer, other_server: LocalServer, make_fetcher: FetcherFactory, location: str, reason: str
) -> None:
    other_server.respond("/a", body=b"secret")
    url = server.respond("/a", status="302 Found", Location=location.format(other=other_server.port))
    error = await fetch_error(make_fetcher(server), url)
    assert "after a redirect" in error.why
    assert reason in error.why
    assert error.what == url
    assert other_server.requested_paths == []


async def test_redirect_loop_ends_after_max_redirects(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    url = server.respond("/a", status="301 Moved Permanently", Location="/a")
    error = await fetch_error(make_fetcher(server, max_redirects=3), url)
    assert "3 times" in error.why
    assert server.requested_paths == ["/a"] * 4


async def test_endless_body_is_aborted_at_max_bytes(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    url = server.respond_with("/a", lambda writer: server.drip(writer, b"x" * 10_000, 0))
    error = await fetch_error(make_fetcher(server, max_bytes=100_000), url)
    assert "100000 bytes" in error.why
    assert server.sent_bytes < 20_000_000, "only as much as the socket buffers hold"


async def test_body_over_max_bytes_is_rejected_and_body_of_max_bytes_is_not(
    server: LocalServer, make_fetcher: FetcherFactory
) -> None:
    fetcher = make_fetcher(server, max_bytes=1000)
    assert len(await fetcher.fetch(server.respond("/a", body=b"x" * 1000))) == 1000
    error = await fetch_error(fetcher, server.respond("/b", body=b"x" * 1001, Content_Length=""))
    assert "1000 bytes" in error.why


async def test_content_length_over_max_bytes_is_rejected_before_the_body(
    server: LocalServer, make_fetcher: FetcherFactory
) -> None:
    async def send_head_only(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20000000000\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(1)

    error = await fetch_error(make_fetcher(server, read_timeout_s=0.5), server.respond_with("/a", send_head_only))
    assert f"{64 * 2**20} bytes" in error.why


async def test_body_shorter_than_content_length_is_retried_and_fails(
    server: LocalServer, make_fetcher: FetcherFactory
) -> None:
    error = await fetch_error(make_fetcher(server), server.respond("/a", body=b"x" * 10, Content_Length=20))
    assert "closed the connection" in error.why
    assert len(server.requested_paths) == 3


async def test_body_longer_than_content_length_is_truncated(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    url = server.respond("/a", body=b"x" * 20, Content_Length=10)
    assert await make_fetcher(server).fetch(url) == b"x" * 10


@pytest.mark.parametrize(
    "response", [b"", b"SSH-2.0-OpenSSH_9.7\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"]
)
async def test_invalid_http_response_fails(server: LocalServer, make_fetcher: FetcherFactory, response: bytes) -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(response)

    error = await fetch_error(make_fetcher(server, max_attempts=1), server.respond_with("/a", send))
    assert "invalid HTTP" in error.why


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP", "deflate", "zstd"])
async def test_compressed_body_is_rejected(server: LocalServer, make_fetcher: FetcherFactory, encoding: str) -> None:
    url = server.respond("/a", body=b"x", Content_Encoding=encoding)
    assert "compressed" in (await fetch_error(make_fetcher(server), url)).why


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
async def test_silent_server_fails_after_read_timeout(
    server: LocalServer, make_fetcher: FetcherFactory, start: bytes
) -> None:
    async def stall(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        await writer.drain()
        await asyncio.sleep(1)

    error = await fetch_error(make_fetcher(server, read_timeout_s=0.1), server.respond_with("/a", stall))
    assert "0.1 s" in error.why
    assert len(server.requested_paths) == 1


async def test_slow_body_fails_after_total_timeout(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    url = server.respond_with("/a", lambda writer: server.drip(writer, b"x", 0.02))
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    error = await fetch_error(make_fetcher(server, read_timeout_s=1, total_timeout_s=0.2), url)
    assert "0.2 s" in error.why
    assert 0.2 <= loop.time() - start_s < 3


async def test_unaccepted_connection_fails_after_connect_timeout(make_fetcher: FetcherFactory) -> None:
    """Connections to a full backlog hang, as behind a firewall that drops packets."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.socket() as first,
        socket.socket() as second,
    ):
        first.connect(full.getsockname())
        second.setblocking(False)
        second.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        fetcher = make_fetcher(allowed_hosts=("127.0.0.1",), connect_timeout_s=0.1, max_attempts=1)
        error = await fetch_error(fetcher, f"http://127.0.0.1:{port}/a")
    assert "within 0.1 s" in error.why


async def test_connect_timeout_includes_dns_resolution(make_fetcher: FetcherFactory) -> None:
    class SlowResolver(FakeResolver):
        async def resolve(self, host: str, port: int) -> Sequence[str]:
            await asyncio.sleep(5)
            return []

    fetcher = make_fetcher(resolver=SlowResolver(), connect_timeout_s=0.05, max_attempts=1)
    error = await fetch_error(fetcher, "http://images.test/a")
    assert "within 0.05 s" in error.why


async def test_refused_connection_is_retried_up_to_max_attempts(make_fetcher: FetcherFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    resolver = FakeResolver(store_local=[["127.0.0.1"]])
    fetcher = make_fetcher(resolver=resolver, allowed_hosts=("store.local",), max_attempts=4)
    error = await fetch_error(fetcher, f"http://store.local:{port}/a")
    assert "refused the connection" in error.why
    assert len(resolver.resolved) == 4


async def test_unknown_host_is_not_retried(make_fetcher: FetcherFactory) -> None:
    resolver = FakeResolver()
    error = await fetch_error(make_fetcher(resolver=resolver), "http://nowhere.test/a")
    assert "not be resolved" in error.why
    assert len(resolver.resolved) == 1


@pytest.mark.parametrize(
    ("status", "attempts", "reason"),
    [
        ("404 Not Found", 1, "404 Not Found"),
        ("410 Gone", 1, "410 Gone"),
        ("401 Unauthorized", 1, "401 Unauthorized"),
        ("403 Forbidden", 1, "403 Forbidden"),
        ("302 Found", 1, "302 Found"),
        ("204 No Content", 1, "204 No Content"),
        ("999 Strange", 1, "999"),
        ("429 Too Many Requests", 3, "429 Too Many Requests"),
        ("500 Internal Server Error", 3, "500 Internal Server Error"),
        ("503 Service Unavailable", 3, "503 Service Unavailable"),
    ],
)
async def test_only_retryable_statuses_are_retried(
    server: LocalServer, make_fetcher: FetcherFactory, status: str, attempts: int, reason: str
) -> None:
    error = await fetch_error(make_fetcher(server), server.respond("/a", status=status))
    assert reason in error.why
    assert "Strange" not in error.why, "the server's own reason phrase is not shown"
    assert ("signing in" in error.why) is (status in ("401 Unauthorized", "403 Forbidden"))
    assert len(server.requested_paths) == attempts


async def test_retry_after_temporary_failure_succeeds(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    async def fail_twice(writer: asyncio.StreamWriter) -> None:
        busy = len(server.requested_paths) < 3
        writer.write(b"HTTP/1.1 503 Busy\r\n\r\n" if busy else b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell")

    assert await make_fetcher(server).fetch(server.respond_with("/a", fail_twice)) == b"well"


async def test_pauses_between_attempts_grow(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    """The pauses are at least half of 0.02, 0.04, 0.08 and 0.16 s; without growth they would be at most 0.08 s."""
    url = server.respond("/a", status="503 Busy")
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    await fetch_error(make_fetcher(server, max_attempts=5, backoff_s=0.02), url)
    assert loop.time() - start_s >= 0.15


async def test_concurrent_fetches_are_limited(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    running, peak = 0, 0

    async def respond_slowly(writer: asyncio.StreamWriter) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.05)
        running -= 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    fetcher = make_fetcher(server, max_concurrent=2)
    url = server.respond_with("/a", respond_slowly)
    await asyncio.gather(*(fetcher.fetch(url) for _ in range(6)))
    assert peak == 2


async def test_total_timeout_excludes_waiting_for_a_slot(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    async def respond_slowly(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    fetcher = make_fetcher(server, max_concurrent=1, total_timeout_s=0.5)
    url = server.respond_with("/a", respond_slowly)
    assert await asyncio.gather(*(fetcher.fetch(url) for _ in range(4))) == [b""] * 4


async def test_cancelled_fetch_frees_its_slot(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    endless = server.respond_with("/drip", lambda writer: server.drip(writer, b"x", 0.01))
    fetcher = make_fetcher(server, max_concurrent=1)
    task = asyncio.create_task(fetcher.fetch(endless))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await fetcher.fetch(server.respond("/a", body=b"x")) == b"x"


async def test_environment_proxies_and_netrc_are_ignored(
    server: LocalServer,
    other_server: LocalServer,
    make_fetcher: FetcherFactory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{other_server.port}")
    assert await make_fetcher(server).fetch(server.respond("/a", body=b"x")) == b"x"
    assert other_server.requested_paths == []
    assert "authorization" not in server.heads[0].lower()


async def test_error_shows_neither_query_nor_address(server: LocalServer, make_fetcher: FetcherFactory) -> None:
    server.respond("/a.png", status="404 Not Found")
    fetcher = make_fetcher(resolver=FakeResolver(store_local=[["127.0.0.1"]]), allowed_hosts=("store.local",))
    error = await fetch_error(fetcher, f"http://store.local:{server.port}/a.png?signature=secret#part")
    assert error.what == f"http://store.local:{server.port}/a.png"
    assert "404 Not Found" in str(error)
    assert not any(text in str(error) for text in ("signature", "secret", "#part", "127.0.0.1"))


@pytest.fixture
async def https(tmp_path: Path) -> AsyncIterator[tuple[LocalServer, ssl.SSLContext]]:
    """An HTTPS server with a certificate for images.test, and a client context that trusts it."""
    server_context, client_context = make_tls_contexts(tmp_path, "images.test")
    async with local_server(server_context) as server:
        server.respond("/a", body=b"sealed")
        yield server, client_context


async def test_tls_verifies_the_host_name_of_the_connected_address(
    https: tuple[LocalServer, ssl.SSLContext], make_fetcher: FetcherFactory
) -> None:
    server, tls = https
    fetcher = make_fetcher(server, resolver=FakeResolver(images_test=[["127.0.0.1"]]), tls=tls)
    assert await fetcher.fetch(f"https://images.test.:{server.port}/a") == b"sealed"
    assert server.sni_names == ["images.test"]
    assert f"Host: images.test:{server.port}\r\n" in server.heads[0]


@pytest.mark.parametrize("host", ["impostor.test", "127.0.0.1"])
async def test_certificate_for_another_host_is_rejected(
    https: tuple[LocalServer, ssl.SSLContext], make_fetcher: FetcherFactory, host: str
) -> None:
    server, tls = https
    resolver = FakeResolver(impostor_test=[["127.0.0.1"]], **{"127_0_0_1": [["127.0.0.1"]]})
    error = await fetch_error(make_fetcher(server, resolver=resolver, tls=tls), f"https://{host}:{server.port}/a")
    assert "certificate" in error.why
    assert server.requested_paths == []


async def test_https_on_an_http_port_fails_with_reason(make_fetcher: FetcherFactory) -> None:
    async def respond(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    http_server = await asyncio.start_server(respond, "127.0.0.1", 0)
    port = http_server.sockets[0].getsockname()[1]
    error = await fetch_error(make_fetcher(allowed_hosts=("127.0.0.1",)), f"https://127.0.0.1:{port}/a")
    http_server.close()
    assert "TLS handshake" in error.why
