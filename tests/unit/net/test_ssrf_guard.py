"""The SSRF guard connects only to the addresses that it has checked."""

import asyncio
from collections.abc import Iterable, Sequence

import httpcore
import pytest

from serve.net.ssrf_guard import AddressNotPublic, AllowedHosts, GuardedNetworkBackend, SystemResolver, UnknownHost
from tests.local_server import FakeResolver


class FakeNetwork(httpcore.AsyncNetworkBackend):
    """Records connections. Addresses in `refusing` refuse them, and addresses in `silent` time out."""

    def __init__(self, refusing: Sequence[str] = (), silent: Sequence[str] = ()) -> None:
        self.refusing, self.silent = refusing, silent
        self.connections: list[tuple[str, int]] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.connections.append((host, port))
        if host in self.refusing:
            raise httpcore.ConnectError
        if host in self.silent:
            await asyncio.sleep(timeout or 0)
            raise httpcore.ConnectTimeout
        return httpcore.AsyncMockStream([])


async def test_host_is_resolved_once_per_connection() -> None:
    resolver, network = FakeResolver(rebind_test=[["8.8.8.8"], ["127.0.0.1"]]), FakeNetwork()
    await GuardedNetworkBackend(AllowedHosts(()), resolver, network).connect_tcp("rebind.test", 80)
    assert network.connections == [("8.8.8.8", 80)]
    assert resolver.resolved == ["rebind.test"]


async def test_host_is_checked_for_each_connection() -> None:
    network = FakeNetwork()
    backend = GuardedNetworkBackend(AllowedHosts(()), FakeResolver(rebind_test=[["8.8.8.8"], ["127.0.0.1"]]), network)
    await backend.connect_tcp("rebind.test", 80)
    with pytest.raises(AddressNotPublic):
        await backend.connect_tcp("rebind.test", 80)
    assert network.connections == [("8.8.8.8", 80)]


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1", "8.8.8.8"], ["::ffff:10.0.0.1"]])
async def test_host_with_one_private_address_is_rejected(addresses: list[str]) -> None:
    network = FakeNetwork()
    with pytest.raises(AddressNotPublic):
        await GuardedNetworkBackend(AllowedHosts(()), FakeResolver(mixed_test=[addresses]), network).connect_tcp(
            "mixed.test", 80
        )
    assert network.connections == []


async def test_next_address_is_tried_after_a_refusal_or_timeout() -> None:
    network = FakeNetwork(refusing=["8.8.8.8"], silent=["8.8.4.4"])
    backend = GuardedNetworkBackend(
        AllowedHosts(()), FakeResolver(many_test=[["8.8.8.8", "8.8.4.4", "8.8.8.8", "1.1.1.1"]]), network
    )
    await backend.connect_tcp("many.test", 443, timeout=0.1)
    assert network.connections == [("8.8.8.8", 443), ("8.8.4.4", 443), ("1.1.1.1", 443)]


async def test_timeout_covers_all_addresses_together() -> None:
    addresses = [f"8.8.8.{last}" for last in range(20)]
    backend = GuardedNetworkBackend(
        AllowedHosts(()), FakeResolver(silent_test=[addresses]), FakeNetwork(silent=addresses)
    )
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    with pytest.raises(httpcore.ConnectTimeout):
        await backend.connect_tcp("silent.test", 80, timeout=0.1)
    assert loop.time() - start_s < 1


async def test_host_without_addresses_is_unknown() -> None:
    with pytest.raises(UnknownHost):
        await GuardedNetworkBackend(AllowedHosts(()), FakeResolver(empty_test=[[]]), FakeNetwork()).connect_tcp(
            "empty.test", 80
        )


async def test_system_resolver_resolves_localhost() -> None:
    resolver = SystemResolver(threads=1)
    assert set(await resolver.resolve("localhost", 80)) <= {"127.0.0.1", "::1"}
    resolver.close()
