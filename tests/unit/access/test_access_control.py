"""Who calls, by token."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import SecretStr

from serve.access.access_control import CACHE_S, AccessControl
from serve.access.caller import OPERATOR
from serve.access.request_counter import RequestCounter
from serve.access.token_rows import revoke_token
from serve.database.connection import Database
from serve.errors import Unauthenticated
from tests.access import add_token
from tests.fakes import NOON, FakeClock


class Harness:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = FakeClock()
        self.access = AccessControl(SecretStr("sésame"), database, RequestCounter(database), self.clock)


@pytest.fixture
def harness(database: Database) -> Harness:
    return Harness(database)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "Token"])
async def test_operators_token_may_do_everything(harness: Harness, scheme: str) -> None:
    assert await harness.access.find_caller(f"{scheme} sésame") is OPERATOR


async def test_stored_token_finds_its_caller(harness: Harness) -> None:
    token, headers = await add_token(harness.database, "read", 60, 4)
    assert await harness.access.find_caller(headers["Authorization"]) == token.caller


@pytest.mark.parametrize(
    "authorization",
    [
        *(None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic sésame", "sésame", "Bearer sésame sésame"),
        f"Bearer flux_{'0' * 16}_{'x' * 43}",
    ],
)
async def test_other_headers_are_rejected(harness: Harness, authorization: str | None) -> None:
    await add_token(harness.database)
    with pytest.raises(Unauthenticated):
        await harness.access.find_caller(authorization)


async def test_other_secret_of_a_stored_token_is_rejected(harness: Harness) -> None:
    (token, headers), (_, others) = await add_token(harness.database), await add_token(harness.database)
    secret = others["Authorization"].split("_", 2)[2]
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            await harness.access.find_caller(f"Bearer flux_{token.id}_{secret}")
    assert await harness.access.find_caller(headers["Authorization"]) == token.caller


async def test_no_operators_token_matches_if_none_is_set(database: Database) -> None:
    access = AccessControl(None, database, RequestCounter(database))
    for authorization in ("Bearer", "Bearer None"):
        with pytest.raises(Unauthenticated):
            await access.find_caller(authorization)


async def test_revoked_token_is_rejected_within_seconds(harness: Harness) -> None:
    token, headers = await add_token(harness.database)
    await harness.access.find_caller(headers["Authorization"])
    await harness.database.write(lambda connection: revoke_token(connection, token.id, NOON))
    harness.clock.elapsed_s = CACHE_S
    with pytest.raises(Unauthenticated):
        await harness.access.find_caller(headers["Authorization"])
    assert CACHE_S <= 10


@pytest.mark.parametrize("is_known", [True, False])
async def test_database_is_asked_once_for_many_requests(harness: Harness, is_known: bool) -> None:
    headers: Mapping[str, str] = {"Authorization": f"Bearer flux_{'0' * 16}_{'x' * 43}"}
    if is_known:
        _, headers = await add_token(harness.database)

    async def is_found() -> bool:
        try:
            await harness.access.find_caller(headers["Authorization"])
        except Unauthenticated:
            return False
        return True

    assert await is_found() is is_known
    read = harness.database.read
    harness.database.read = None  # type: ignore[assignment, method-assign]
    assert await is_found() is is_known
    harness.database.read = read  # type: ignore[method-assign]


async def test_database_is_asked_once_for_requests_at_the_same_time(harness: Harness) -> None:
    token, headers = await add_token(harness.database)
    read, calls = harness.database.read, 0

    async def counting_read(work: Any) -> Any:
        nonlocal calls
        calls += 1
        return await read(work)

    harness.database.read = counting_read  # type: ignore[method-assign]
    finding = [asyncio.create_task(harness.access.find_caller(headers["Authorization"])) for _ in range(50)]
    await asyncio.sleep(0)
    finding.pop(0).cancel()
    assert await asyncio.gather(*finding) == [token.caller] * 49
    assert calls == 1
