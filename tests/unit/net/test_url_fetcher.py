"""Fetching from a real server on this machine, and from names that lead somewhere else than they seem to."""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from serve.errors import FetchFailed
from serve.net.url_fetcher import UrlFetcher
from serve.settings import FetchSettings
from tests.local_server import LocalServer, Names, certificate


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    server = LocalServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def other() -> AsyncIterator[LocalServer]:
    """A second server, which no test allows."""
    server = LocalServer()
    await server.start()
    yield server
    await server.stop()


TRUSTS_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Spares each test the 70 ms in which the certificates of the internet are read."""


def a_fetcher(names: Names | None = None, **settings: object) -> UrlFetcher:
    return UrlFetcher(FetchSettings.model_validate({"backoff_s": 0.001, **settings}), names, TRUSTS_NOBODY)


def fetcher_for(server: LocalServer, **settings: object) -> UrlFetcher:
    return a_fetcher(None, allowed_hosts=(f"127.0.0.1:{server.port}",), **settings)


async def failure(fetcher: UrlFetcher, url: str) -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        await fetcher.fetch(url)
    await fetcher.aclose()
    return caught.value


async def test_a_file_arrives_as_it_is(server: LocalServer) -> None:
    body = bytes(range(256)) * 1000
    assert await fetcher_for(server).fetch(server.answer("/a.png", body=body)) == body


async def test_a_file_without_a_length_or_in_chunks_arrives_whole(server: LocalServer) -> None:
    open_end = server.answer("/open", body=b"to the end", Content_Length="")
    chunked = server.answer(
        "/chunked", body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", Content_Length="", Transfer_Encoding="chunked"
    )
    assert await fetcher_for(server).fetch(open_end) == b"to the end"
    assert await fetcher_for(server).fetch(chunked) == b"abcde"


async def test_the_server_hears_whom_it_is_taken_for_and_that_nothing_shall_be_compressed(server: LocalServer) -> None:
    await fetcher_for(server).fetch(server.answer("/a", body=b"x"))
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
async def test_a_private_address_is_refused_in_every_spelling(server: LocalServer, host: str) -> None:
    server.answer("/a", body=b"secret")
    error = await failure(a_fetcher(), f"http://{host}:{server.port}/a")
    assert error.why.startswith("its address is not public")
    assert server.asked == []


@pytest.mark.parametrize("host", ["[fe80::1%25lo]", "[::1%25lo]", "a..b", "a" * 70 + ".com"])
async def test_a_host_that_is_none_fails_with_a_reason(host: str) -> None:
    error = await failure(a_fetcher(max_attempts=1), f"http://{host}/a")
    assert re.search("not a valid URL|not known|not public", error.why)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["8.8.8.8", "::1"], ["fe80::1%2"]])
async def test_a_name_is_refused_when_any_of_its_addresses_is_private(
    server: LocalServer, addresses: list[str]
) -> None:
    server.answer("/a", body=b"secret")
    names = Names(pictures_test=[addresses])
    error = await failure(a_fetcher(names), f"http://pictures.test:{server.port}/a")
    assert error.why.startswith("its address is not public")
    assert names.asked == ["pictures.test"]
    assert server.asked == []


async def test_a_name_is_checked_again_at_each_attempt(server: LocalServer) -> None:
    server.answer("/a", status="503 Busy")
    names = Names(pictures_test=[["127.0.0.1"], ["169.254.169.254"]])
    error = await failure(
        a_fetcher(names, allowed_hosts=(f"127.0.0.1:{server.port}",)), f"http://pictures.test:{server.port}/a"
    )
    assert error.why.startswith("its address is not public")
    assert server.asked == ["/a"]


async def test_an_allowed_name_may_be_private(server: LocalServer) -> None:
    server.answer("/a", body=b"inside")
    names = Names(store_local=[["127.0.0.1"]])
    fetcher = a_fetcher(names, allowed_hosts=("store.local",))
    assert await fetcher.fetch(f"http://store.local:{server.port}/a") == b"inside"
    assert f"Host: store.local:{server.port}\r\n" in server.heads[0]


async def test_an_allowance_for_one_port_opens_no_other(server: LocalServer, other: LocalServer) -> None:
    error = await failure(fetcher_for(server), other.answer("/a", body=b"secret"))
    assert error.why.startswith("its address is not public")
    assert other.asked == []


async def test_redirects_are_followed_relative_and_absolute(server: LocalServer) -> None:
    end = server.answer("/end", body=b"there")
    server.answer("/next", status="307 Temporary Redirect", Location=end)
    start = server.answer("/start", status="302 Found", Location="next#part")
    assert await fetcher_for(server).fetch(start) == b"there"


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://127.0.0.1:{other}/a", "its address is not public"),
        ("http://localhost:{other}/a", "its address is not public"),
        ("http://169.254.169.254/latest/meta-data/", "its address is not public"),
        ("//[::1]:{other}/a", "its address is not public"),
        ("file:///etc/passwd", "only http and https"),
        ("http://me:secret@127.0.0.1:{other}/a", "a user name or password"),
        ("http://[::1/", "it is not a valid URL"),
    ],
)
async def test_a_redirect_is_checked_like_a_first_url(
    server: LocalServer, other: LocalServer, location: str, why: str
) -> None:
    other.answer("/a", body=b"secret")
    url = server.answer("/a", status="302 Found", Location=location.format(other=other.port))
    error = await failure(fetcher_for(server), url)
    assert error.why.startswith(f"after a redirect, {why}")
    assert error.what == url
    assert other.asked == []


async def test_a_redirect_loop_ends(server: LocalServer) -> None:
    url = server.answer("/a", status="301 Moved Permanently", Location="/a")
    error = await failure(fetcher_for(server, max_redirects=3), url)
    assert error.why == "it redirects more than 3 times"
    assert server.asked == ["/a"] * 4


async def test_an_endless_body_is_cut_off_at_the_limit(server: LocalServer) -> None:
    url = server.behave("/a", lambda writer: server.drip(writer, b"x" * 10_000, 0))
    error = await failure(fetcher_for(server, max_bytes=100_000), url)
    assert error.why == "it has more than 100000 bytes"
    assert server.sent_bytes < 20_000_000, "what the sockets between hold, and no more"


async def test_a_body_of_the_limit_is_taken_and_one_byte_more_is_not(server: LocalServer) -> None:
    fetcher = fetcher_for(server, max_bytes=1000)
    assert len(await fetcher.fetch(server.answer("/a", body=b"x" * 1000))) == 1000
    error = await failure(fetcher, server.answer("/b", body=b"x" * 1001, Content_Length=""))
    assert error.why == "it has more than 1000 bytes"


async def test_a_body_that_says_it_is_too_large_is_not_read(server: LocalServer) -> None:
    async def announce(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20000000000\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(1)

    error = await failure(fetcher_for(server, read_timeout_s=0.5), server.behave("/a", announce))
    assert error.why == f"it has more than {64 * 2**20} bytes"


async def test_a_body_shorter_than_it_says_is_a_failure(server: LocalServer) -> None:
    error = await failure(fetcher_for(server), server.answer("/a", body=b"x" * 10, Content_Length=20))
    assert error.why == "its server broke the connection off before it was complete"
    assert len(server.asked) == 3


async def test_a_body_longer_than_it_says_ends_where_it_says(server: LocalServer) -> None:
    assert await fetcher_for(server).fetch(server.answer("/a", body=b"x" * 20, Content_Length=10)) == b"x" * 10


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH_9.7\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"]
)
async def test_an_answer_that_is_not_http_is_a_failure(server: LocalServer, answer: bytes) -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    error = await failure(fetcher_for(server, max_attempts=1), server.behave("/a", send))
    assert error.why == "its server broke the connection off before it was complete"


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP", "deflate", "zstd"])
async def test_a_compressed_body_is_refused_as_it_may_be_a_bomb(server: LocalServer, encoding: str) -> None:
    url = server.answer("/a", body=b"x", Content_Encoding=encoding)
    assert "compresses" in (await failure(fetcher_for(server), url)).why


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
async def test_a_server_that_falls_silent_is_left(server: LocalServer, start: bytes) -> None:
    async def stall(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        await writer.drain()
        await asyncio.sleep(1)

    error = await failure(fetcher_for(server, read_timeout_s=0.1), server.behave("/a", stall))
    assert error.why == "its server sent nothing for 0.1 s"
    assert len(server.asked) == 1


async def test_a_server_that_drips_is_left_after_the_total_time(server: LocalServer) -> None:
    url = server.behave("/a", lambda writer: server.drip(writer, b"x", 0.02))
    loop = asyncio.get_running_loop()
    began = loop.time()
    error = await failure(fetcher_for(server, read_timeout_s=1, total_timeout_s=0.2), url)
    assert error.why == "it was not complete after 0.2 s"
    assert 0.2 <= loop.time() - began < 3


async def test_a_server_that_accepts_nothing_is_left() -> None:
    """A full backlog looks like a firewall that drops packets."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.socket() as held,
        socket.socket() as held_too,
    ):
        held.connect(full.getsockname())
        held_too.setblocking(False)
        held_too.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        fetcher = a_fetcher(allowed_hosts=("127.0.0.1",), connect_timeout_s=0.1, max_attempts=1)
        error = await failure(fetcher, f"http://127.0.0.1:{port}/a")
    assert error.why == "its server took no connection within 0.1 s"


async def test_a_slow_name_service_counts_as_connecting() -> None:
    class Slow(Names):
        async def resolve(self, host: str, port: int) -> Sequence[str]:
            await asyncio.sleep(5)
            return []

    error = await failure(a_fetcher(Slow(), connect_timeout_s=0.05, max_attempts=1), "http://pictures.test/a")
    assert error.why == "its server took no connection within 0.05 s"


async def test_a_refused_connection_is_tried_again_a_bounded_number_of_times() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    names = Names(store_local=[["127.0.0.1"]])
    error = await failure(
        a_fetcher(names, allowed_hosts=("store.local",), max_attempts=4), f"http://store.local:{port}/a"
    )
    assert error.why == "its server cannot be connected to"
    assert len(names.asked) == 4


async def test_an_unknown_name_is_not_asked_for_again() -> None:
    names = Names()
    error = await failure(a_fetcher(names), "http://nowhere.test/a")
    assert error.why == "its host name is not known"
    assert len(names.asked) == 1


@pytest.mark.parametrize(
    ("status", "attempts", "why"),
    [
        ("404 Not Found", 1, "its server answered 404 Not Found"),
        ("410 Gone", 1, "its server answered 410 Gone"),
        ("401 Unauthorized", 1, "its server answered 401 Unauthorized; it must be readable without signing in"),
        ("403 Forbidden", 1, "its server answered 403 Forbidden; it must be readable without signing in"),
        ("302 Found", 1, "its server answered 302 Found"),
        ("204 No Content", 1, "its server answered 204 No Content"),
        ("999 Strange", 1, "its server answered 999"),
        ("429 Too Many Requests", 3, "its server answered 429 Too Many Requests"),
        ("500 Internal Server Error", 3, "its server answered 500 Internal Server Error"),
        ("503 Service Unavailable", 3, "its server answered 503 Service Unavailable"),
    ],
)
async def test_only_failures_that_may_pass_are_tried_again(
    server: LocalServer, status: str, attempts: int, why: str
) -> None:
    error = await failure(fetcher_for(server), server.answer("/a", status=status))
    assert error.why == why
    assert len(server.asked) == attempts


async def test_a_failure_that_passes_is_survived(server: LocalServer) -> None:
    async def busy_twice(writer: asyncio.StreamWriter) -> None:
        busy = len(server.asked) < 3
        writer.write(b"HTTP/1.1 503 Busy\r\n\r\n" if busy else b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell")

    assert await fetcher_for(server).fetch(server.behave("/a", busy_twice)) == b"well"


async def test_pauses_between_attempts_grow(server: LocalServer) -> None:
    """At least half of 0.02, 0.04, 0.08 and 0.16 s; four times the first would be 0.08 s at most."""
    url = server.answer("/a", status="503 Busy")
    loop = asyncio.get_running_loop()
    began = loop.time()
    await failure(fetcher_for(server, max_attempts=5, backoff_s=0.02), url)
    assert loop.time() - began >= 0.15


async def test_no_more_fetches_run_at_once_than_allowed(server: LocalServer) -> None:
    running, most = 0, 0

    async def slow(writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    fetcher = fetcher_for(server, max_concurrent=2)
    url = server.behave("/a", slow)
    await asyncio.gather(*(fetcher.fetch(url) for _ in range(6)))
    assert most == 2


async def test_waiting_for_a_turn_costs_a_fetch_none_of_its_time(server: LocalServer) -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    fetcher = fetcher_for(server, max_concurrent=1, total_timeout_s=0.5)
    url = server.behave("/a", slow)
    assert await asyncio.gather(*(fetcher.fetch(url) for _ in range(4))) == [b""] * 4


async def test_a_fetch_that_is_cancelled_frees_its_slot(server: LocalServer) -> None:
    drip = server.behave("/drip", lambda writer: server.drip(writer, b"x", 0.01))
    fetcher = fetcher_for(server, max_concurrent=1)
    task = asyncio.create_task(fetcher.fetch(drip))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await fetcher.fetch(server.answer("/a", body=b"x")) == b"x"


async def test_proxies_and_passwords_of_the_environment_take_no_part(
    server: LocalServer, other: LocalServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{other.port}")
    assert await fetcher_for(server).fetch(server.answer("/a", body=b"x")) == b"x"
    assert other.asked == []
    assert "authorization" not in server.heads[0].lower()


async def test_an_error_shows_neither_query_nor_address(server: LocalServer) -> None:
    server.answer("/a.png", status="404 Not Found")
    names = Names(store_local=[["127.0.0.1"]])
    fetcher = a_fetcher(names, allowed_hosts=("store.local",))
    error = await failure(fetcher, f"http://store.local:{server.port}/a.png?signature=secret#part")
    assert str(error) == f"could not fetch http://store.local:{server.port}/a.png: its server answered 404 Not Found"


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[tuple[LocalServer, ssl.SSLContext]]:
    """A TLS server that can prove to be pictures.test, and a client's context that trusts it."""
    server_side, client_side = certificate(tmp_path, "pictures.test")
    server = LocalServer()
    await server.start(server_side)
    server.answer("/a", body=b"sealed")
    yield server, client_side
    await server.stop()


async def test_tls_checks_the_name_while_the_checked_address_is_connected_to(
    secure: tuple[LocalServer, ssl.SSLContext],
) -> None:
    server, tls = secure
    settings = FetchSettings(allowed_hosts=(f"127.0.0.1:{server.port}",))
    fetcher = UrlFetcher(settings, Names(pictures_test=[["127.0.0.1"]]), tls)
    assert await fetcher.fetch(f"https://pictures.test.:{server.port}/a") == b"sealed"
    assert server.names == ["pictures.test"]
    assert f"Host: pictures.test:{server.port}\r\n" in server.heads[0]


@pytest.mark.parametrize("host", ["impostor.test", "127.0.0.1"])
async def test_a_server_that_cannot_prove_its_name_is_refused(
    secure: tuple[LocalServer, ssl.SSLContext], host: str
) -> None:
    server, tls = secure
    names = Names(impostor_test=[["127.0.0.1"]], **{"127_0_0_1": [["127.0.0.1"]]})
    fetcher = UrlFetcher(FetchSettings(allowed_hosts=(f"127.0.0.1:{server.port}",)), names, tls)
    error = await failure(fetcher, f"https://{host}:{server.port}/a")
    assert error.why == "the certificate of its server is not valid for it"
    assert server.asked == []


async def test_https_on_a_port_that_speaks_http_fails_with_a_reason() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    plain = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = plain.sockets[0].getsockname()[1]
    error = await failure(a_fetcher(allowed_hosts=("127.0.0.1",)), f"https://127.0.0.1:{port}/a")
    plain.close()
    assert error.why == "its server does not speak TLS as it should"
