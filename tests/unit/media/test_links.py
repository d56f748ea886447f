"""Signed links to stored files."""

import pytest
from starlette.datastructures import QueryParams

from serve.errors import InvalidLink
from serve.media.links import LinkSigner
from tests.fakes import FakeClock

KEY = "outputs/p1/1/out-0.webp"


def make_signer(clock: FakeClock, secret: bytes = b"secret") -> LinkSigner:
    async def load_key() -> bytes:
        return secret

    return LinkSigner(load_key, max_age_s=60, now=clock)


async def test_link_is_valid_in_every_process_until_it_expires() -> None:
    clock = FakeClock(1000)
    query = QueryParams(await make_signer(clock).query(KEY))
    for clock.elapsed_s in (1000, 1060):
        await make_signer(clock).check(KEY, query)
    clock.elapsed_s = 1120
    with pytest.raises(InvalidLink):
        await make_signer(clock).check(KEY, query)


async def test_link_does_not_change_with_every_response() -> None:
    clock = FakeClock(1020)
    signer = make_signer(clock)
    queries = set()
    for clock.elapsed_s in (1020, 1050, 1079.9, 1080):
        queries.add(await signer.query(KEY))
    assert len(queries) == 2


@pytest.mark.parametrize(
    "query",
    [
        "",
        "expires=9999999999",
        "signature=x",
        "expires=9999999999&signature=x",
        "expires=&signature=",
        "expires=-1&signature=x",
        "expires=1e9&signature=x",
        "expires=%D9%A1&signature=%D9%A1",
        f"expires={'9' * 5000}&signature=x",
    ],
)
async def test_forged_link_is_invalid(query: str) -> None:
    with pytest.raises(InvalidLink):
        await make_signer(FakeClock(1000)).check(KEY, QueryParams(query))


async def test_link_to_another_file_with_another_key_or_time_is_invalid() -> None:
    clock = FakeClock(1000)
    query = await make_signer(clock).query(KEY)
    later = query.replace("expires=1", "expires=2")
    assert later != query
    for signer, key, text in (
        (make_signer(clock), "outputs/p1/1/out-1.webp", query),
        (make_signer(clock, b"other"), KEY, query),
        (make_signer(clock), KEY, later),
    ):
        with pytest.raises(InvalidLink):
            await signer.check(key, QueryParams(text))


async def test_key_that_cannot_be_loaded_is_loaded_later() -> None:
    results: list[bytes | Exception] = [OSError(), b"secret"]

    async def load_key() -> bytes:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    signer = LinkSigner(load_key, 60, FakeClock(1000))
    with pytest.raises(OSError):  # noqa: PT011 - any
        await signer.query(KEY)
    assert await signer.query(KEY) == await make_signer(FakeClock(1000)).query(KEY)
    assert results == []
