"""Counts of requests. Two counters on one database stand for two processes."""

from serve.access.request_counter import RequestCounter
from serve.access.token_rows import read_requests
from serve.database.connection import Database
from tests.fakes import FakeClock

MINUTE = 60.0


def count(counter: RequestCounter, number: int, limit: int = 5) -> int:
    """Sends requests and returns how many are allowed."""
    return sum(counter.count("a", limit).allowed for _ in range(number))


async def test_requests_of_one_process_are_limited_at_once(database: Database) -> None:
    clock = FakeClock(10 * MINUTE)
    counter = RequestCounter(database, clock)
    assert count(counter, 9) == 5
    assert counter.count("b", 1).allowed
    clock.elapsed_s = 12 * MINUTE
    assert count(counter, 9) == 5


async def test_requests_of_all_processes_are_counted_together(database: Database) -> None:
    clock = FakeClock(10 * MINUTE)
    one, other = RequestCounter(database, clock), RequestCounter(database, clock)
    assert count(one, 2) == 2
    assert count(other, 1) == 1
    await one.synchronize()
    await other.synchronize()
    assert count(other, 9) == 2
    await other.synchronize()
    await one.synchronize()
    assert count(one, 1) == 0


async def test_requests_are_stored_once(database: Database) -> None:
    clock = FakeClock(10 * MINUTE)
    counter = RequestCounter(database, clock)
    count(counter, 3)
    for _ in range(2):
        await counter.synchronize()
    counts = await database.read(lambda connection: read_requests(connection, ["a"], 0))
    assert counts == {("a", 10): 3}
    assert count(counter, 9) == 2


async def test_last_minute_counts_by_its_part(database: Database) -> None:
    clock = FakeClock(10 * MINUTE)
    counter = RequestCounter(database, clock)
    assert count(counter, 9, limit=10) == 9
    await counter.synchronize()
    clock.elapsed_s = 11 * MINUTE + 20
    await counter.synchronize()
    assert count(counter, 9, limit=10) == 4


async def test_old_counts_are_removed(database: Database) -> None:
    clock = FakeClock(10 * MINUTE)
    counter = RequestCounter(database, clock)
    count(counter, 3)
    await counter.synchronize()
    clock.elapsed_s = 20 * MINUTE
    count(counter, 1)
    await counter.synchronize()
    counts = await database.read(lambda connection: read_requests(connection, ["a"], 0))
    assert counts == {("a", 20): 1}
    clock.elapsed_s = 30 * MINUTE
    await counter.synchronize()
    assert count(counter, 9) == 5
