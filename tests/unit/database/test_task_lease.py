"""Leases of processes on tasks."""

import asyncio

from serve.database.connection import Database
from serve.database.task_lease import TaskLease
from tests.fakes import FakeClock


async def test_one_process_has_the_lease_until_it_expires(database: Database) -> None:
    clock = FakeClock(1000)
    one, two = (TaskLease(database, "sweep", 10, clock) for _ in range(2))
    assert await one.take()
    assert not await two.take()
    clock.elapsed_s += 9
    assert await one.take()
    clock.elapsed_s += 9
    assert not await two.take()
    clock.elapsed_s += 1
    assert await two.take()
    assert not await one.take()


async def test_one_of_many_takes_the_lease(database: Database) -> None:
    leases = [TaskLease(database, "sweep", 10) for _ in range(8)]
    assert sum(await asyncio.gather(*(lease.take() for lease in leases))) == 1


async def test_tasks_have_leases_of_their_own(database: Database) -> None:
    assert await TaskLease(database, "sweep", 10).take()
    assert await TaskLease(database, "other", 10).take()
