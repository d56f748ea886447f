"""Parsing of the `Prefer` header."""

import pytest

from serve.api.http_messages import InvalidHeader, Preference, parse_prefer, prefers_async
from serve.settings import Settings
from tests.app_factory import make_app
from tests.fakes import ONE_IMAGE, FakePool

OUT_OF_RANGE = ["61", "120", "-1", "1.5", "2.5", "soon", "9" * 5000, "1e1", "0x5", "\u0665"]


@pytest.mark.parametrize(
    ("headers", "preference"),
    [
        ([], (None, False, None)),
        (["wait"], (55, False, "wait")),
        (["Wait"], (55, False, "wait")),
        (["wait=1"], (1, False, "wait=1")),
        (["wait=55"], (55, False, "wait=55")),
        (["wait=60"], (55, False, "wait=55")),
        (["wait=5"], (5, False, "wait=5")),
        (['wait = "5"'], (5, False, "wait=5")),
        (["wait=0"], (None, False, None)),
        (["wait=5; sooner=better"], (5, False, "wait=5")),
        (["respond-async"], (None, True, "respond-async")),
        (["respond-async, wait=10"], (10, True, "wait=10")),
        (["respond-async", "wait=10"], (10, True, "wait=10")),
        (["wait=3, wait=7"], (3, False, "wait=3")),
        (["return=minimal, depth-noroot"], (None, False, None)),
        (["=,;,,wait"], (55, False, "wait")),
    ],
)
def test_prefer_header_is_parsed_and_unknown_preferences_are_ignored(
    headers: list[str], preference: tuple[float | None, bool, str | None]
) -> None:
    assert parse_prefer(headers, max_wait_s=55) == Preference(*preference)


@pytest.mark.parametrize("value", OUT_OF_RANGE)
@pytest.mark.parametrize("others", [[], ["respond-async"]])
def test_wait_outside_of_its_range_is_an_error(value: str, others: list[str]) -> None:
    with pytest.raises(InvalidHeader) as raised:
        parse_prefer([*others, f"wait={value}"], max_wait_s=55)
    [error] = raised.value.field_errors
    assert error.field == "Prefer"
    assert value[:20] in error.message
    assert "60" in error.message


def test_default_wait_is_shorter_than_the_timeout_of_the_clients() -> None:
    assert Settings().max_wait_s == 55


async def test_wait_out_of_range_is_rejected_before_the_prediction_is_created() -> None:
    app = make_app(FakePool(ONE_IMAGE))
    async with app.http as client:
        response = await client.post(
            "/v1/predictions", json={"input": {"prompt": "a cat"}}, headers={"Prefer": "wait=2.5"}
        )
    assert (response.status_code, app.prediction_ids) == (422, [])
    assert [each["field"] for each in response.json()["invalid_fields"]] == ["Prefer"]


async def test_cog_ignores_wait() -> None:
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        response = await client.post("/predictions", json={"input": {"prompt": "a"}}, headers={"Prefer": "wait=2.5"})
    assert response.status_code == 200


@pytest.mark.parametrize(("headers", "expected"), [([], False), (["wait=-1"], False), (["wait, Respond-Async"], True)])
def test_asynchronous_response_is_preferred(headers: list[str], expected: bool) -> None:
    assert prefers_async(headers) is expected
