"""SSRF guard: connects only to addresses that are public or that the operator allows.

A host name is resolved once per connection, every address is checked, and the connection uses one of the checked
addresses, so a second DNS answer cannot redirect it. TLS still verifies the host name.
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

MAX_ADDRESSES_TRIED = 4

NON_PUBLIC_NETWORKS = tuple(
    ip_network(network)
    for network in (
        "192.0.0.0/24",  # Protocol assignments; a cloud has its metadata service at 192.0.0.192.
        "192.88.99.0/24",  # 6to4 relays.
        "168.63.129.16/32",  # The host of every Azure VM: a public address that serves the VM's secrets.
        "2001::/23",  # Protocol assignments, among them Teredo, which embeds an IPv4 address.
        "2001:db8::/32",  # Documentation.
        "2002::/16",  # 6to4, which embeds an IPv4 address.
        "3fff::/20",  # Documentation.
    )
)
"""Networks that `is_global` of some Python releases counts as public, and Azure's host.

Source: IANA special-purpose address registries, which Python follows too, but differently in each patch release.
"""
GLOBAL_UNICAST = ip_network("2000::/3")
"""All of IPv6 that is routed on the internet."""
NAT64 = ip_network("64:ff9b::/96")
"""Networks without IPv4 reach an IPv4 address under this prefix; the address is the last 32 bits."""


class UnknownHost(httpcore.ConnectError):
    """The host name could not be resolved. If `retryable`, the failure of the name server is temporary."""

    def __init__(self, retryable: bool) -> None:
        super().__init__()
        self.retryable = retryable


class AddressNotPublic(httpcore.ConnectError):
    """The host has an address that is neither public nor allowed by the operator."""


class Resolver(Protocol):
    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Returns the IP addresses of `host`. Raises `UnknownHost`."""

    def close(self) -> None:
        """Releases the resolver's resources."""


class SystemResolver:
    """Resolves host names with `getaddrinfo`, in its own threads.

    With its own threads, a slow name server cannot block the threads that decode images.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="resolver")

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._executor, lambda: socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
            )
        except (socket.gaierror, UnicodeError) as error:
            raise UnknownHost(retryable=getattr(error, "errno", None) == socket.EAI_AGAIN) from error
        return [str(address[0]) for *_, address in results]

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


class AllowedHosts:
    """The hosts that an operator allows although they are not public.

    Each entry is a host name or an address, optionally with a port: `host`, `host:port`, `[address]:port`. Raises
    `ValueError` for any other entry.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._entries = frozenset(_parse_entry(entry) for entry in entries)

    def covers(self, host: str, port: int) -> bool:
        """Whether `host`, a name or an address in any spelling, is allowed for `port` or for all ports."""
        normalized = _normalize(host)
        return (normalized, port) in self._entries or (normalized, None) in self._entries


class GuardedNetworkBackend(httpcore.AsyncNetworkBackend):
    """An `httpcore` network backend that resolves and checks hosts; `network` makes the connections."""

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
        """Connects to the first address of `host` that accepts, within `timeout` seconds for all of them.

        Raises `AddressNotPublic`, `UnknownHost`, or what `httpcore` raises if no address accepts.
        """
        try:
            async with asyncio.timeout(timeout):
                addresses = (await self._resolve(host, port))[:MAX_ADDRESSES_TRIED]
                address_timeout_s = None if timeout is None else timeout / len(addresses)
                for address in addresses[:-1]:
                    try:
                        return await self._network.connect_tcp(
                            address, port, address_timeout_s, local_address, socket_options
                        )
                    except (httpcore.ConnectError, httpcore.ConnectTimeout):
                        continue
                return await self._network.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error

    async def _resolve(self, host: str, port: int) -> list[str]:
        """Returns the addresses of `host`, all of which may be connected to."""
        addresses = list(dict.fromkeys(await self._resolver.resolve(host, port)))
        if not addresses:
            raise UnknownHost(retryable=False)
        if not self._allowed.covers(host, port) and not all(self._is_allowed(address, port) for address in addresses):
            raise AddressNotPublic
        return addresses

    def _is_allowed(self, address: str, port: int) -> bool:
        return is_public(ip_address(address)) or self._allowed.covers(address, port)


def is_public(address: IpAddress) -> bool:
    """Whether `address` is a unicast address on the public internet."""
    address = _embedded_ipv4(address)
    if address.version == 6 and address not in GLOBAL_UNICAST:
        return False
    excluded = any(address in network for network in NON_PUBLIC_NETWORKS)
    return address.is_global and not address.is_multicast and not excluded


def _parse_entry(entry: str) -> tuple[str, int | None]:
    """Returns host and port of an entry in `allowed_hosts`."""
    try:
        # A bare IPv6 address: its colons do not separate a port.
        return str(_embedded_ipv4(IPv6Address(entry))), None
    except ValueError:
        pass
    try:
        parts = urlsplit(f"//{entry}")
        if parts.netloc != entry or "@" in entry or not parts.hostname:
            raise ValueError("not a host with an optional port")
        return _normalize(parts.hostname), parts.port
    except ValueError as error:
        raise ValueError(f"allowed_hosts: {entry!r} is not a host or address with an optional port") from error


def _normalize(host: str) -> str:
    """Returns one spelling for each host: lower case, no trailing dot, and addresses as Python formats them."""
    name = host.lower().rstrip(".")
    try:
        return str(_embedded_ipv4(ip_address(name)))
    except ValueError:
        return name


def _embedded_ipv4(address: IpAddress) -> IpAddress:
    """Returns the IPv4 address that a NAT64 or IPv4-mapped address contains, or else `address`."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address
