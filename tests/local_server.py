"""A real HTTP server on this machine that answers as a test says, and a name service that leads to it."""

import asyncio
import datetime
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from serve.net.ssrf_guard import UnknownHost

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class LocalServer:
    """An HTTP server that answers each path as a test says, byte by byte if need be, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.heads: list[str] = []
        self.names: list[str | None] = []
        """What TLS clients called the server."""
        self.port = 0
        self.sent_bytes = 0
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        if tls:
            tls.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Ends whatever still answers: a transport that outlives its loop is a warning, which is an error here."""
        self._server.close()
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    def answer(self, path: str, status: str = "200 OK", body: bytes = b"", **headers: str | int) -> str:
        """Lets `path` be answered, and returns its URL. A Content-Length that is given need not be true."""
        told = {"Content-Length": len(body), **{name.replace("_", "-"): value for name, value in headers.items()}}
        head = "".join(f"{name}: {value}\r\n" for name, value in told.items() if value != "")

        async def send(writer: asyncio.StreamWriter) -> None:
            writer.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)

        return self.behave(path, send)

    def behave(self, path: str, answer: Answer) -> str:
        self.answers[path] = answer
        return f"http://127.0.0.1:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split()[1].partition("?")[0]
                self.asked.append(path)
                self.heads.append(head)
                await self.answers[path](writer)
                await writer.drain()
        finally:
            writer.close()
            if task.cancelling():
                writer.transport.abort()
            self._answering.discard(task)

    async def drip(self, writer: asyncio.StreamWriter, piece: bytes, pause_s: float) -> None:
        """An answer without an end, a piece at a time, for as long as the client takes it."""
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            self.sent_bytes += len(piece)
            await asyncio.sleep(pause_s)


class Names:
    """A name service that tells for each host what a test says: the first answer, then the next, then on with it."""

    def __init__(self, **hosts: Sequence[Sequence[str]]) -> None:
        self.hosts = {name.replace("_", "."): list(answers) for name, answers in hosts.items()}
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.hosts:
            raise UnknownHost(passing=False)
        answers = self.hosts[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def close(self) -> None:
        pass


def certificate(folder: Path, host: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS contexts of a server that can prove to be `host`, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return server_side, ssl.create_default_context(cafile=str(folder / "certificate.pem"))
