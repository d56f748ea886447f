"""The limits on requests that are sent at once."""

import asyncio

import pytest

from serve.webhooks.host_slots import HostSlots


async def test_one_host_has_a_limit_of_its_own() -> None:
    slots = HostSlots(total=10, per_host=2)
    async with slots.take("a", 1), slots.take("a", 1), slots.take("a", 0) as third, slots.take("b", 1) as other:
        assert (third, other) == (False, True)
        assert slots.busy_hosts() == ["a"]
        assert (slots.free("a"), slots.free("b"), slots.free("c")) == (0, 1, 2)
    assert slots.busy_hosts() == []
    assert slots.free("a") == 2


async def test_all_hosts_share_the_total() -> None:
    slots = HostSlots(total=2, per_host=2)
    async with slots.take("a", 1), slots.take("b", 1), slots.take("c", 0) as third:
        assert not third


async def test_request_waits_for_a_slot() -> None:
    slots = HostSlots(total=1, per_host=1)
    order = []

    async def send(name: str) -> None:
        async with slots.take("a", 5) as taken:
            order.append((name, taken))
            await asyncio.sleep(0)

    await asyncio.gather(*(send(name) for name in "xyz"))
    assert order == [("x", True), ("y", True), ("z", True)]


async def test_failed_block_gives_its_slot_back() -> None:
    slots = HostSlots(total=1, per_host=1)
    with pytest.raises(KeyError):
        async with slots.take("a", 1):
            raise KeyError
    assert slots.free("a") == 1


async def test_cancelled_wait_takes_no_slot() -> None:
    slots = HostSlots(total=1, per_host=1)
    async with slots.take("a", 1):
        waiting = asyncio.create_task(slots.take("a", 5).__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert slots.free("a") == 1
