"""The address that is checked is the address that is connected to."""

import asyncio
from collections.abc import Iterable, Sequence

import httpcore
import pytest

from serve.net.ssrf_guard import AddressNotPublic, AllowedHosts, GuardedNetworkBackend, SystemResolver, UnknownHost


class Answers:
    """A name service with one answer a question, in order."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        return self.answers.pop(0)

    def close(self) -> None:
        pass


class Network(httpcore.AsyncNetworkBackend):
    """Keeps whom it should connect to; `dead` addresses refuse, `silent` ones never answer."""

    def __init__(self, dead: Sequence[str] = (), silent: Sequence[str] = ()) -> None:
        self.dead, self.silent = dead, silent
        self.dialled: list[tuple[str, int]] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.dialled.append((host, port))
        if host in self.dead:
            raise httpcore.ConnectError
        if host in self.silent:
            await asyncio.sleep(timeout or 0)
            raise httpcore.ConnectTimeout
        return httpcore.AsyncMockStream([])


async def test_a_name_that_turns_private_after_the_check_changes_nothing() -> None:
    names, network = Answers(["8.8.8.8"], ["127.0.0.1"]), Network()
    await GuardedNetworkBackend(AllowedHosts(()), names, network).connect_tcp("rebind.test", 80)
    assert network.dialled == [("8.8.8.8", 80)]
    assert names.answers == [["127.0.0.1"]], "the name was asked for once"


async def test_a_name_is_checked_anew_for_each_connection() -> None:
    network = Network()
    dialer = GuardedNetworkBackend(AllowedHosts(()), Answers(["8.8.8.8"], ["127.0.0.1"]), network)
    await dialer.connect_tcp("rebind.test", 80)
    with pytest.raises(AddressNotPublic):
        await dialer.connect_tcp("rebind.test", 80)
    assert network.dialled == [("8.8.8.8", 80)]


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1", "8.8.8.8"], ["::ffff:10.0.0.1"]])
async def test_one_private_address_among_those_of_a_name_is_enough_to_refuse_it(addresses: list[str]) -> None:
    network = Network()
    with pytest.raises(AddressNotPublic):
        await GuardedNetworkBackend(AllowedHosts(()), Answers(addresses), network).connect_tcp("mixed.test", 80)
    assert network.dialled == []


async def test_the_next_address_is_tried_when_one_refuses_or_stays_silent() -> None:
    network = Network(dead=["8.8.8.8"], silent=["8.8.4.4"])
    dialer = GuardedNetworkBackend(AllowedHosts(()), Answers(["8.8.8.8", "8.8.4.4", "8.8.8.8", "1.1.1.1"]), network)
    await dialer.connect_tcp("many.test", 443, timeout=0.1)
    assert network.dialled == [("8.8.8.8", 443), ("8.8.4.4", 443), ("1.1.1.1", 443)]


async def test_all_addresses_together_get_the_time_of_one_connection() -> None:
    addresses = [f"8.8.8.{last}" for last in range(20)]
    dialer = GuardedNetworkBackend(AllowedHosts(()), Answers(addresses), Network(silent=addresses))
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(httpcore.ConnectTimeout):
        await dialer.connect_tcp("silent.test", 80, timeout=0.1)
    assert loop.time() - began < 1


async def test_a_name_without_addresses_is_unknown() -> None:
    with pytest.raises(UnknownHost):
        await GuardedNetworkBackend(AllowedHosts(()), Answers([]), Network()).connect_tcp("empty.test", 80)


async def test_the_system_resolver_knows_this_machine() -> None:
    resolver = SystemResolver(threads=1)
    assert set(await resolver.resolve("localhost", 80)) <= {"127.0.0.1", "::1"}
    resolver.close()
