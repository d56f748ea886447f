"""Connects to hosts that callers name, and to no address that it did not check.

A name is resolved once for a connection; every address that it has is checked, and one of those very addresses is
connected to. So a name server that answers differently the next time changes nothing. TLS still checks the name.
Knows nothing of URLs or redirects: each connection of an HTTP client passes through here.
"""

import asyncio
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Protocol

import httpcore

from serve.media.addresses import AllowedHosts, is_public

TRIED_ADDRESSES = 4


class UnknownHost(httpcore.ConnectError):
    """No address is known for the host; `passing` when the name server may know one later."""

    def __init__(self, passing: bool) -> None:
        super().__init__()
        self.passing = passing


class NotPublic(httpcore.ConnectError):
    """The host has an address that may not be fetched from."""


class Resolver(Protocol):
    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """The addresses of `host`. Raises `UnknownHost`."""

    def close(self) -> None:
        """Lets go of what was held for resolving."""


class SystemResolver:
    """Asks the operating system, in threads of its own: a slow name server takes none that pictures are decoded in."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolver")

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
            )
        except (socket.gaierror, UnicodeError) as error:
            raise UnknownHost(passing=getattr(error, "errno", None) == socket.EAI_AGAIN) from error
        return [str(address[0]) for *_, address in found]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Dialer(httpcore.AsyncNetworkBackend):
    """The network as `httpcore` sees it. `network` makes the connections, to addresses only."""

    def __init__(
        self, allowed: AllowedHosts, resolver: Resolver, network: httpcore.AsyncNetworkBackend | None = None
    ) -> None:
        self._allowed = allowed
        self._resolver = resolver
        self._network = network or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to `host`. Raises `NotPublic`, and what `httpcore` raises when none can be had."""
        try:
            async with asyncio.timeout(timeout):
                addresses = (await self._checked(host, port))[:TRIED_ADDRESSES]
                share_s = timeout / len(addresses) if timeout else None
                for address in addresses[:-1]:
                    try:
                        return await self._network.connect_tcp(address, port, share_s, local_address, socket_options)
                    except (httpcore.ConnectError, httpcore.ConnectTimeout):
                        continue
                return await self._network.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error

    async def _checked(self, host: str, port: int) -> list[str]:
        addresses = list(dict.fromkeys(await self._resolver.resolve(host, port)))
        if not addresses:
            raise UnknownHost(passing=False)
        if not self._allowed.covers(host, port) and not all(self._may_reach(address, port) for address in addresses):
            raise NotPublic
        return addresses

    def _may_reach(self, address: str, port: int) -> bool:
        return is_public(ip_address(address)) or self._allowed.covers(address, port)
