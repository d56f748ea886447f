"""An HTTP server on loopback with scripted responses, a scripted DNS resolver, and TLS contexts for both sides."""

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from serve.net.ssrf_guard import UnknownHost

Responder = Callable[[asyncio.StreamWriter], Awaitable[None]]

EMPTY_TRUST_STORE = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""A client context that trusts no certificate. Loading the system's certificates would take 70 ms in each test."""


class LocalServer:
    """An HTTP server with a scripted response for each path; it records all requests."""

    def __init__(self) -> None:
        self.responders: dict[str, Responder] = {}
        """The function that writes the response, for each path."""
        self.requested_paths: list[str] = []
        """The path of each request, without its query."""
        self.heads: list[str] = []
        """The request line and headers of each request."""
        self.sni_names: list[str | None] = []
        """The server name in each TLS handshake."""
        self.port = 0
        self.sent_bytes = 0
        """Bytes that `drip` has written."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        if tls:
            tls.sni_callback = lambda _socket, name, _context: self.sni_names.append(name)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops the server and cancels open responses; a transport that outlives its loop would raise a warning."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def respond(self, path: str, status: str = "200 OK", body: bytes = b"", **headers: str | int) -> str:
        """Sets the response for `path`, and returns its URL.

        Underscores in the names of `headers` become hyphens. `Content_Length` replaces the length of `body`; an empty
        value omits the header.
        """
        all_headers = {
            "Content-Length": len(body),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items() if value != "")

        async def send(writer: asyncio.StreamWriter) -> None:
            writer.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)

        return self.respond_with(path, send)

    def respond_with(self, path: str, responder: Responder) -> str:
        """Sets the function that writes the response for `path`, and returns its URL."""
        self.responders[path] = responder
        return f"http://127.0.0.1:{self.port}{path}"

    async def drip(self, writer: asyncio.StreamWriter, piece: bytes, pause_s: float) -> None:
        """Writes a response with an endless body until the client disconnects: `piece`, a pause, `piece`, and so on."""
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            self.sent_bytes += len(piece)
            await asyncio.sleep(pause_s)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split()[1].partition("?")[0]
                self.requested_paths.append(path)
                self.heads.append(head)
                await self.responders[path](writer)
                await writer.drain()
        finally:
            writer.close()
            if task.cancelling():
                writer.transport.abort()
            self._tasks.discard(task)


@asynccontextmanager
async def local_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[LocalServer]:
    """Runs a server for the duration of the block."""
    server = LocalServer()
    await server.start(tls)
    try:
        yield server
    finally:
        await server.stop()


class FakeResolver:
    """A DNS resolver with scripted answers for each host, in order; the last answer is repeated.

    In the names of keyword arguments, underscores stand for dots.
    """

    def __init__(self, **hosts: Sequence[Sequence[str]]) -> None:
        self._answers = {name.replace("_", "."): list(answers) for name, answers in hosts.items()}
        self.resolved: list[str] = []
        """The host of each call of `resolve`."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.resolved.append(host)
        if host not in self._answers:
            raise UnknownHost(retryable=False)
        answers = self._answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def close(self) -> None:
        pass


def make_tls_contexts(folder: Path, host: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Returns the TLS contexts of a server with a certificate for `host`, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return server_context, ssl.create_default_context(cafile=str(folder / "certificate.pem"))
