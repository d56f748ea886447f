"""Collections and search."""

from typing import Any

import httpx
import pytest

from tests.app_factory import make_app
from tests.fakes import ONE_IMAGE, FakePool


async def get(path: str, **parameters: Any) -> httpx.Response:
    async with make_app(FakePool(ONE_IMAGE)).http as client:
        return await client.get(path, params=parameters)


async def test_collection_has_all_models() -> None:
    [listed] = (await get("/v1/collections")).json()["results"]
    collection = (await get(f"/v1/collections/{listed['slug']}")).json()
    assert listed.keys() == {"slug", "name", "description"}
    assert "fofr/flux-handwriting-and-sketch" in [f"{each['owner']}/{each['name']}" for each in collection["models"]]


async def test_unknown_collection_is_not_found() -> None:
    response = await get("/v1/collections/none")
    assert response.status_code == 404
    assert "'none'" in response.json()["detail"]


@pytest.mark.parametrize(
    ("query", "models", "collections"),
    [
        ("handwriting", ["flux-handwriting-and-sketch"], []),
        ("text image", [], ["text-to-image"]),
        ("nothing", [], []),
    ],
)
async def test_search_finds_models_and_collections(query: str, models: list[str], collections: list[str]) -> None:
    found = (await get("/v1/search", query=query)).json()
    assert (found["query"], found["pages"]) == (query, [])
    assert [each["model"]["name"] for each in found["models"] if query != "text image"] == models
    assert [each["slug"] for each in found["collections"]] == collections
    assert all("metadata" in each for each in found["models"])


async def test_search_returns_at_most_limit_models() -> None:
    assert len((await get("/v1/search", query="flux", limit=2)).json()["models"]) == 2


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({}, "query"),
        ({"query": "a", "limit": "0"}, "limit"),
        ({"query": "a", "limit": "51"}, "limit"),
        ({"query": "a", "limit": "9" * 5000}, "limit"),
        ({"query": "a", "limit": "-1"}, "limit"),
        ({"query": "a", "limit": "ten"}, "limit"),
    ],
)
async def test_invalid_search_is_rejected(parameters: dict[str, str], field: str) -> None:
    response = await get("/v1/search", **parameters)
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["invalid_fields"]] == [field]
