"""The signing secrets in the database: the first one, and rotation."""

import asyncio
from datetime import timedelta

from serve.database.connection import Database
from serve.webhooks.signing_secrets import SigningSecrets
from tests.fakes import FakeClock

HOUR = timedelta(hours=1)


async def test_processes_that_start_at_once_make_one_secret(database: Database) -> None:
    found = await asyncio.gather(*(SigningSecrets(database).valid() for _ in range(5)))
    assert len(found[0]) == 1
    assert set(found) == {found[0]}


async def test_replaced_secret_is_valid_until_the_overlap_has_passed(database: Database) -> None:
    clock = FakeClock()
    secrets = SigningSecrets(database, clock.now)
    [first] = await secrets.valid()
    second = await secrets.rotate(HOUR)
    assert await secrets.valid() == (second, first)
    clock.elapsed_s = HOUR.total_seconds() + 1
    assert await secrets.valid() == (second,)


async def test_two_secrets_at_most_are_valid(database: Database) -> None:
    secrets = SigningSecrets(database, FakeClock().now)
    await secrets.valid()
    second, third = await secrets.rotate(HOUR), await secrets.rotate(HOUR)
    assert await secrets.valid() == (third, second)


async def test_rotation_without_a_secret_makes_one(database: Database) -> None:
    secrets = SigningSecrets(database)
    rotated = await secrets.rotate(HOUR)
    assert await secrets.valid() == (rotated,)
