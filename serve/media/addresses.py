"""Which addresses may be fetched from: public ones, and what the operator named. Pure; resolves and connects nothing.

Source: the special-purpose address registries of IANA. Python's `is_global` follows them too, but differs between patch
releases, so what it is known to let through is listed here.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address

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


def is_public(address: Address) -> bool:
    """Whether everybody on the internet reaches the same machine under `address`."""
    address = _unwrapped(address)
    if address.version == 6 and address not in GLOBAL_UNICAST:
        return False
    listed = any(address in network for network in NOT_PUBLIC)
    return address.is_global and not address.is_multicast and not listed


def _unwrapped(address: Address) -> Address:
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
