"""SSRF guard: connects only to addresses that are public or that the operator allows.

A host name is resolved once per connection, every address is checked, and the connection uses one of the checked
addresses, so a second DNS answer cannot redirect it. TLS still verifies the host name.

Source of the address ranges: IANA special-purpose address registries. Python follows them in `is_global` too, but
differs between patch releases, so what it is known to miss is listed here.
"""

import asyncio
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Protocol
from urllib.parse import urlsplit

import httpcore

IpAddress = IPv4Address | IPv6Address

NOT_PUBLIC = tuple(
    ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments; a cloud keeps its metadata service at 192.0.0.192
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # the host of every Azure machine: a public number that serves the machine's secrets
        "2001::/23",  # protocol assignments, and Teredo with an IPv4 address inside
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",  # documentation
    )
)
GLOBAL_UNICAST = ip_network("2000::/3")
"""All of IPv6 that is routed on the internet."""
TRANSLATED = ip_network("64:ff9b::/96")
"""NAT64: how a network without IPv4 reaches an IPv4 address, which is the last 32 bits."""


def is_public(address: IpAddress) -> bool:
    """Whether everybody on the internet reaches the same machine under `address`."""
    address = _unwrapped(address)
    if address.version == 6 and address not in GLOBAL_UNICAST:
        return False
    listed = any(address in network for network in NOT_PUBLIC)
    return address.is_global and not address.is_multicast and not listed


def _unwrapped(address: IpAddress) -> IpAddress:
    """The IPv4 address that an IPv6 one stands for, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in TRANSLATED:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address


class AllowedHosts:
    """What an operator lets through although it is not public: `host`, `host:port`, an address, or `[address]:port`.

    Raises `ValueError` for an entry that is none of these.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._entries = frozenset(_read_entry(entry) for entry in entries)

    def covers(self, host: str, port: int) -> bool:
        """Whether `host`, a name or an address in any of its spellings, was named for `port` or for all ports."""
        name = _canonical(host)
        return (name, port) in self._entries or (name, None) in self._entries


def _read_entry(entry: str) -> tuple[str, int | None]:
    try:
        # A bare IPv6 address: its colons begin no port.
        return str(_unwrapped(IPv6Address(entry))), None
    except ValueError:
        pass
    try:
        parts = urlsplit(f"//{entry}")
        if parts.netloc != entry or "@" in entry or not parts.hostname:
            raise ValueError("more, or less, than a host and a port")
        return _canonical(parts.hostname), parts.port
    except ValueError as error:
        raise ValueError(f"allowed_hosts: {entry!r} is no host or address, with or without a port") from error


def _canonical(host: str) -> str:
    """One spelling for each host: lower case, no closing dot, and addresses as Python writes them."""
    name = host.lower().rstrip(".")
    try:
        return str(_unwrapped(ip_address(name)))
    except ValueError:
        return name


MAX_ADDRESSES_TRIED = 4


class UnknownHost(httpcore.ConnectError):
    """No address is known for the host; `passing` when the name server may know one later."""

    def __init__(self, passing: bool) -> None:
        super().__init__()
        self.retryable = passing


class AddressNotPublic(httpcore.ConnectError):
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


class GuardedNetworkBackend(httpcore.AsyncNetworkBackend):
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
                addresses = (await self._checked(host, port))[:MAX_ADDRESSES_TRIED]
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
            raise AddressNotPublic
        return addresses

    def _may_reach(self, address: str, port: int) -> bool:
        return is_public(ip_address(address)) or self._allowed.covers(address, port)
