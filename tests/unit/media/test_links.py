"""Signed links to stored files."""

import pytest

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
    ticket = await make_signer(clock).ticket(KEY)
    for clock.elapsed_s in (1000, 1060):
        await make_signer(clock).check(KEY, ticket)
    clock.elapsed_s = 1120
    with pytest.raises(InvalidLink):
        await make_signer(clock).check(KEY, ticket)


async def test_link_does_not_change_with_every_response() -> None:
    clock = FakeClock(1020)
    signer = make_signer(clock)
    tickets = set()
    for clock.elapsed_s in (1020, 1050, 1079.9, 1080):
        tickets.add(await signer.ticket(KEY))
    assert len(tickets) == 2


SIGNATURE = "x" * 43


@pytest.mark.parametrize(
    "ticket",
    [
        "",
        "9999999999",
        SIGNATURE,
        f"9999999999-{SIGNATURE}",
        f"9999999999{SIGNATURE}",
        "9999999999-",
        f"-{SIGNATURE}",
        f"-1-{SIGNATURE}",
        f"1e9-{SIGNATURE}",
        f"\u0661-{SIGNATURE}",
        f"9999999999-{SIGNATURE}\n",
        f"9999999999-{SIGNATURE[1:]}\u00e9",
        f"{'9' * 5000}-{SIGNATURE}",
    ],
)
async def test_forged_link_is_invalid(ticket: str) -> None:
    with pytest.raises(InvalidLink):
        await make_signer(FakeClock(1000)).check(KEY, ticket)


async def test_link_to_another_file_with_another_key_or_time_is_invalid() -> None:
    clock = FakeClock(1000)
    ticket = await make_signer(clock).ticket(KEY)
    later = f"2{ticket}"
    for signer, key, text in (
        (make_signer(clock), "outputs/p1/1/out-1.webp", ticket),
        (make_signer(clock, b"other"), KEY, ticket),
        (make_signer(clock), KEY, later),
    ):
        with pytest.raises(InvalidLink):
            await signer.check(key, text)


async def test_key_that_cannot_be_loaded_is_loaded_later() -> None:
    results: list[bytes | Exception] = [OSError(), b"secret"]

    async def load_key() -> bytes:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    signer = LinkSigner(load_key, 60, FakeClock(1000))
    with pytest.raises(OSError):  # noqa: PT011 - any
        await signer.ticket(KEY)
    assert await signer.ticket(KEY) == await make_signer(FakeClock(1000)).ticket(KEY)
    assert results == []
