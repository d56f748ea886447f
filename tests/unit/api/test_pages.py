"""Pages of predictions: query parameters and links in both directions."""

from urllib.parse import parse_qs, urlsplit

import pytest

from serve.api import replicate
from serve.api.pages import parse_page_query
from serve.errors import InvalidInput
from tests.app_factory import make_app
from tests.fakes import ONE_IMAGE, FakePool
from tests.unit.predictions.helpers import CAT, run_to_end


def query_of(url: str) -> str:
    return urlsplit(url).query


async def test_links_go_through_all_pages_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicate, "PAGE_SIZE", 2)
    app = make_app(FakePool(ONE_IMAGE))
    for _ in range(5):
        await run_to_end(app, CAT)
    newest_first = app.prediction_ids[::-1]
    async with app.http as http:

        async def pages(direction: str, first: str) -> list[list[str]]:
            found, query = [], first
            while True:
                body = (await http.get(f"/v1/predictions?{query}")).json()
                found.append([each["id"] for each in body["results"]])
                if body[direction] is None:
                    return found
                assert body[direction].startswith("http://127.0.0.1:8000/v1/predictions?")
                query = query_of(body[direction])

        assert await pages("next", "") == [newest_first[:2], newest_first[2:4], newest_first[4:]]
        assert await pages("previous", f"cursor={newest_first[3]}") == [
            newest_first[4:],
            newest_first[2:4],
            newest_first[:2],
        ]


async def test_links_keep_the_times_of_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicate, "PAGE_SIZE", 1)
    app = make_app(FakePool(ONE_IMAGE))
    for _ in range(2):
        await run_to_end(app, CAT)
    async with app.http as http:
        response = await http.get("/v1/predictions", params={"created_after": "2020-01-01T00:00:00Z"})
        query = parse_qs(query_of(response.json()["next"]))
        assert query["created_after"] == ["2020-01-01T00:00:00+00:00"]
        assert (await http.get("/v1/predictions?created_before=2020-01-01T00:00:00Z")).json()["results"] == []
        assert (await http.get("/v1/predictions?cursor=unknown")).status_code == 404


@pytest.mark.parametrize("name", ["created_after", "created_before"])
def test_invalid_time_is_rejected_by_name(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_page_query({name: "yesterday"}, 10)
    assert [error.field for error in caught.value.field_errors] == [name]
