"""The limits on requests that are sent at once."""

import pytest

from serve.webhooks.host_slots import HostSlots


def test_one_host_has_a_limit_of_its_own() -> None:
    slots = HostSlots(total=10, per_host=2)
    with slots.take("a") as first, slots.take("a") as second, slots.take("a") as third, slots.take("b") as other:
        assert (first, second, third, other) == (True, True, False, True)
        assert slots.busy_hosts() == ["a"]
        assert (slots.free("a"), slots.free("b"), slots.free("c")) == (0, 1, 2)
    assert slots.busy_hosts() == []
    assert slots.free("a") == 2


def test_all_hosts_share_the_total() -> None:
    slots = HostSlots(total=2, per_host=2)
    with slots.take("a"), slots.take("b"), slots.take("c") as third:
        assert not third


def test_failed_block_gives_its_slot_back() -> None:
    slots = HostSlots(total=1, per_host=1)
    with pytest.raises(KeyError), slots.take("a"):
        raise KeyError
    assert slots.free("a") == 1
