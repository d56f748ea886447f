"""The notice that the process that owns an object has died, without Ray."""

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any

import pytest
from ray.exceptions import ObjectLostError, OwnerDiedError, RaySystemError

from serve import owner_death
from serve.owner_death import CHECK_PERIOD_S, Owner, is_reference

OWNER_DIED, OBJECT_LOST = (error_type("0" * 40, None, "") for error_type in (OwnerDiedError, ObjectLostError))


class FakeReference:
    """Can be awaited more than once, as a reference of Ray. It raises `error` when it is set."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.read_count = 0
        self.may_read = asyncio.Event()
        self.may_read.set()

    def __await__(self) -> Generator[Any, None, None]:
        return self._read().__await__()

    async def _read(self) -> None:
        self.read_count += 1
        await self.may_read.wait()
        if self.error:
            raise self.error


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def owner_of(reference: Awaitable[object]) -> tuple[Owner, Clock]:
    clock = Clock()
    owner = Owner([reference], clock)
    clock.now_s += CHECK_PERIOD_S
    return owner, clock


@pytest.mark.parametrize(
    ("error", "is_dead"), [(None, False), (OWNER_DIED, True), (OBJECT_LOST, True), (RaySystemError("busy"), False)]
)
async def test_owner_is_dead_if_its_object_is_lost(error: Exception | None, is_dead: bool) -> None:
    owner, _ = owner_of(FakeReference(error))
    assert await owner.is_dead() is is_dead


async def test_object_is_read_once_per_period() -> None:
    reference = FakeReference()
    owner, clock = owner_of(reference)
    assert not await owner.is_dead()
    reference.error = OWNER_DIED
    assert not await owner.is_dead()
    assert reference.read_count == 1
    clock.now_s += CHECK_PERIOD_S
    assert await owner.is_dead()


async def test_object_that_cannot_be_read_in_time_is_no_sign_of_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_death, "READ_TIMEOUT_S", 0.01)
    reference = FakeReference(OWNER_DIED)
    reference.may_read.clear()
    owner, _ = owner_of(reference)
    assert not await owner.is_dead()


async def test_without_a_reference_the_owner_never_dies() -> None:
    clock = Clock()
    owner = Owner([], clock)
    clock.now_s += CHECK_PERIOD_S
    assert not await owner.is_dead()


async def test_wait_until_dead_returns_when_the_owner_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_death, "CHECK_PERIOD_S", 0)
    reference = FakeReference()
    waiting = asyncio.create_task(Owner([reference]).wait_until_dead())
    while not reference.read_count:
        await asyncio.sleep(0)
    assert not waiting.done()
    reference.error = OWNER_DIED
    await asyncio.wait_for(waiting, 10)


@pytest.mark.parametrize(
    ("value", "expected"), [((), True), ([], True), (None, False), ([1], False), ([None, None], False), ({}, False)]
)
def test_reference_is_a_list_of_at_most_one_object(value: object, expected: bool) -> None:
    assert is_reference(value) is expected
