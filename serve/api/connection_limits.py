"""Bounds the connections of Serve's HTTP proxy: their number, slow and large heads, idle ones, and unread responses."""

import asyncio
import resource
import socket
from typing import Any, ClassVar, Protocol

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 20.0
"""Time in which a client must send the head of a request: its first line and headers."""
SEND_TIMEOUT_S = 60.0
"""A client that reads nothing for this long, while there is something to send, is disconnected."""
MAX_HEAD_BYTES = 64 * 2**10
HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
MAX_FILES = 2**16


class Connection(Protocol):
    """`address` is that of the client."""

    @property
    def address(self) -> str: ...

    def close(self) -> None: ...


class Connections:
    """The open connections. If there are too many, the one that has been idle the longest is closed.

    An address has at most half of all, so that one client cannot take those of the others. Behind a load balancer, all
    clients have the same address.
    """

    def __init__(self, max_connections: int) -> None:
        self._max_connections = max_connections
        self._by_address: dict[str, dict[Connection, None]] = {}
        self._idle: dict[Connection, None] = {}
        """Without a request, the longest idle first."""
        self._count = 0

    def add(self, connection: Connection) -> bool:
        """Adds an idle connection. Returns False if it must be closed, because no other one is idle."""
        if not self._make_place(connection.address):
            return False
        self._by_address.setdefault(connection.address, {})[connection] = None
        self._idle[connection] = None
        self._count += 1
        return True

    def remove(self, connection: Connection) -> None:
        same = self._by_address.get(connection.address, {})
        if connection not in same:
            return
        del same[connection]
        if not same:
            del self._by_address[connection.address]
        self._idle.pop(connection, None)
        self._count -= 1

    def set_idle(self, connection: Connection, idle: bool) -> None:
        self._idle.pop(connection, None)
        if idle and connection in self._by_address.get(connection.address, {}):
            self._idle[connection] = None

    def _make_place(self, address: str) -> bool:
        """Returns False if there is no place, and no idle connection that could be closed."""
        same = self._by_address.get(address, {})
        if len(same) >= self._max_connections // 2:
            closable = (each for each in self._idle if each in same)
        elif self._count >= self._max_connections:
            closable = (each for each in self._idle)
        else:
            return True
        closed = next(closable, None)
        if closed is None:
            return False
        self.remove(closed)
        closed.close()
        return True


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits. uvicorn itself closes connections that are idle after a response."""

    open_connections: ClassVar[Connections]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.address = ""
        self._head_bytes = 0
        self._is_in_head = True
        """Whether the next byte belongs to the head of a request, not to a body."""
        self._has_request = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        _limit_send_time(transport)
        if self.open_connections.add(self):
            self._start_timer()
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.open_connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            self._head_bytes += len(data)
            if not self._has_request:
                self._start_timer()
        super().data_received(data)
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES:
            if not self._has_request:
                self.transport.write(HEAD_TOO_LARGE)
            self.close()

    def on_headers_complete(self) -> None:
        self._is_in_head, self._head_bytes, self._has_request = False, 0, True
        self._stop_timer()
        self.open_connections.set_idle(self, False)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_head = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            self._has_request = False
            self.open_connections.set_idle(self, True)
        if not self._is_in_head:
            # The client still sends the body of a request that has its response.
            self._start_timer()

    def handle_websocket_upgrade(self) -> None:
        self._stop_timer()
        self.open_connections.remove(self)
        super().handle_websocket_upgrade()

    def close(self) -> None:
        self.transport.close()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _limit_send_time(transport: asyncio.Transport) -> None:
    """Disconnects clients that do not read. They could keep a connection for ever, even after the server closes it."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # not on macOS
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SEND_TIMEOUT_S))


def limit_connections() -> None:
    """Makes every uvicorn server that this process starts from now on use `LimitedHttpProtocol`.

    The process may then open as many files as the system allows, and connections take at most half of them.
    """
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    max_files = MAX_FILES if allowed == resource.RLIM_INFINITY else min(allowed, MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, allowed))
    LimitedHttpProtocol.open_connections = Connections(max_files // 2)
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{LimitedHttpProtocol.__name__}"
