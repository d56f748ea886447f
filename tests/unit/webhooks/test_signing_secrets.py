"""The signing secrets in the database: the first one, and rotation."""

import asyncio
from datetime import timedelta

from serve.database.connection import Database
from serve.webhooks.signing_secrets import SigningSecrets
from tests.fakes import FakeClock

HOUR = timedelta(hours=1)
OWNER = "0123456789abcdef"


async def test_processes_that_start_at_once_make_one_secret(database: Database) -> None:
    found = await asyncio.gather(*(SigningSecrets(database).valid(OWNER) for _ in range(5)))
    assert len(found[0]) == 1
    assert set(found) == {found[0]}


async def test_replaced_secret_is_valid_until_the_overlap_has_passed(database: Database) -> None:
    clock = FakeClock()
    secrets = SigningSecrets(database, clock.now)
    [first] = await secrets.valid(OWNER)
    second = await secrets.rotate(OWNER, HOUR)
    assert await secrets.valid(OWNER) == (second, first)
    clock.elapsed_s = HOUR.total_seconds() + 1
    assert await secrets.valid(OWNER) == (second,)


async def test_two_secrets_at_most_are_valid(database: Database) -> None:
    secrets = SigningSecrets(database, FakeClock().now)
    await secrets.valid(OWNER)
    second, third = await secrets.rotate(OWNER, HOUR), await secrets.rotate(OWNER, HOUR)
    assert await secrets.valid(OWNER) == (third, second)


async def test_rotation_without_a_secret_makes_one(database: Database) -> None:
    secrets = SigningSecrets(database)
    rotated = await secrets.rotate(OWNER, HOUR)
    assert await secrets.valid(OWNER) == (rotated,)


async def test_owners_have_their_own_secrets(database: Database) -> None:
    secrets = SigningSecrets(database, FakeClock().now)
    [own], [other] = await secrets.valid(OWNER), await secrets.valid("")
    assert own != other
    rotated = await secrets.rotate(OWNER, HOUR)
    assert await secrets.valid(OWNER) == (rotated, own)
    assert await secrets.valid("") == (other,)
