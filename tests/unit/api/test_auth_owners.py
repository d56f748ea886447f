"""A token sees only its own predictions and files; the operator sees all."""

from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from serve.events import ImageFinished, Started
from serve.settings import OutputSettings, Settings
from tests.access import add_token
from tests.app_factory import AppUnderTest, make_app
from tests.fakes import DONE, ONE_IMAGE, FakePool
from tests.images import png

CAT = {"prompt": "a cat", "seed": 7, "num_inference_steps": 2}
OPERATOR = {"Authorization": "Bearer operator"}
BASE = "https://flux.example"
PUBLIC = Settings(outputs=OutputSettings(public_url=BASE))
LINKS = "/links/"
"""Links have a signature instead of an owner."""

Headers = Mapping[str, str]


class Harness:
    """An application with a prediction and a file of one token, and another token."""

    def __init__(self, app: AppUnderTest, owner: Headers, other: Headers) -> None:
        self.app = app
        self.owner = owner
        self.other = other
        self.prediction_id = ""
        self.links: list[str] = []
        """To the output, the stream and the file."""
        self.file_id = ""

    async def request(self, headers: Headers, method: str, path: str, **arguments: Any) -> httpx.Response:
        async with self.app.http as client:
            return await client.request(method, path, headers=headers, **arguments)

    async def ids(self, headers: Headers, path: str) -> list[str]:
        return [each["id"] for each in (await self.request(headers, "GET", path)).json()["results"]]

    async def upload(self, headers: Headers) -> httpx.Response:
        return await self.request(headers, "POST", "/v1/files", files={"content": ("a.bin", b"abc")})

    @property
    def output(self) -> str:
        """The path of the output, which needs a token."""
        return "/outputs/" + self.links[0].partition("/outputs/")[2]

    async def create(self, headers: Headers, **inputs: Any) -> httpx.Response:
        waiting = {**headers, "Prefer": "wait"}
        return await self.request(waiting, "POST", "/v1/predictions", json={"input": CAT | inputs})


@pytest.fixture
async def harness() -> Harness:
    app = make_app(FakePool(ONE_IMAGE), PUBLIC, token="operator")
    (_, owner), (_, other) = await add_token(app.database), await add_token(app.database)
    harness = Harness(app, owner, other)
    prediction, file = (await harness.create(owner)).json(), (await harness.upload(owner)).json()
    harness.prediction_id, harness.file_id = prediction["id"], file["id"]
    urls = prediction["output"][0], prediction["urls"]["stream"], file["urls"]["download"]
    harness.links = [url.removeprefix(BASE) for url in urls]
    return harness


async def test_every_route_with_an_id_is_unknown_to_others(harness: Harness) -> None:
    routes = [route for route in harness.app.app.routes if isinstance(route, Route)]
    owned = [route for route in routes if {"prediction_id", "file_id"} & route.param_convertors.keys()]
    checked = [route for route in owned if not route.path.startswith(LINKS)]
    assert len(checked) >= 8
    *_, number, name = harness.output.split("/")
    for route in checked:
        path = route.path.format(prediction_id=harness.prediction_id, file_id=harness.file_id, number=number, name=name)
        for method in sorted((route.methods or set()) - {"PUT"}):  # With PUT, the id is that of a new prediction.
            response = await harness.request(harness.other, method, path)
            assert (method, path, response.status_code) == (method, path, 404)


async def test_id_of_another_token_is_taken(harness: Harness) -> None:
    body = {"input": {"prompt": "a cat"}}
    async with harness.app.http as client:
        response = await client.put(f"/predictions/{harness.prediction_id}", json=body, headers=harness.other)
    assert (response.status_code, response.json().keys()) == (409, {"detail"})


async def test_owner_and_operator_reach_prediction_and_file(harness: Harness) -> None:
    for headers in (harness.owner, OPERATOR):
        prediction, file = f"/v1/predictions/{harness.prediction_id}", f"/v1/files/{harness.file_id}"
        for path in (prediction, f"{prediction}/stream", harness.output, file, f"{file}/download"):
            assert (await harness.request(headers, "GET", path)).status_code == 200
        cancel = f"/predictions/{harness.prediction_id}/cancel"
        assert (await harness.request(headers, "POST", cancel)).status_code == 200
    assert (await harness.request(harness.owner, "DELETE", f"/v1/files/{harness.file_id}")).status_code == 204


@pytest.mark.parametrize(("path", "attribute"), [("/v1/predictions", "prediction_id"), ("/v1/files", "file_id")])
async def test_lists_have_only_what_the_token_owns(harness: Harness, path: str, attribute: str) -> None:
    own = getattr(harness, attribute)
    create = harness.create if path == "/v1/predictions" else harness.upload
    await create(OPERATOR)
    assert await harness.ids(harness.owner, path) == [own]
    assert await harness.ids(harness.other, path) == []
    assert len(await harness.ids(OPERATOR, path)) == 2


@pytest.mark.parametrize(("path", "attribute"), [("/v1/predictions", "prediction_id"), ("/v1/files", "file_id")])
async def test_cursor_of_another_token_is_unknown(harness: Harness, path: str, attribute: str) -> None:
    query = f"{path}?cursor={getattr(harness, attribute)}"
    assert (await harness.request(harness.owner, "GET", query)).status_code == 200
    assert (await harness.request(harness.other, "GET", query)).status_code == 404


async def test_links_need_no_token_and_work_with_any(harness: Harness) -> None:
    for path in harness.links:
        assert path.startswith(LINKS)
        for headers in ({}, harness.other, {"Authorization": "Bearer wrong"}):
            assert (await harness.request(headers, "GET", path)).status_code == 200


async def test_unknown_and_foreign_outputs_get_the_same_answer(harness: Harness) -> None:
    foreign = await harness.request(harness.other, "GET", harness.output)
    unknown = await harness.request(harness.other, "GET", harness.output.replace(harness.prediction_id, "nothing"))
    assert (foreign.status_code, foreign.json()) == (404, unknown.json())


async def test_unknown_and_foreign_ids_get_the_same_answer(harness: Harness) -> None:
    foreign = await harness.request(harness.other, "GET", f"/v1/predictions/{harness.prediction_id}")
    unknown = await harness.request(harness.other, "GET", "/v1/predictions/nothing")
    assert foreign.json()["detail"].replace(harness.prediction_id, "nothing") == unknown.json()["detail"]


@pytest.mark.parametrize("base", [BASE, "https://other.example"])
@pytest.mark.parametrize("field", ["image", "replicate_weights"])
async def test_file_of_another_token_is_no_input(harness: Harness, field: str, base: str) -> None:
    url = f"{base}/v1/files/{harness.file_id}"
    response = await harness.create(harness.other, **{field: url})
    assert (response.status_code, response.json()["invalid_fields"][0]["field"]) == (422, f"input.{field}")


@pytest.mark.parametrize("base", [BASE, "https://other.example"])
@pytest.mark.parametrize("ticket", ["", "/links/1-x", f"/links/9999999999-{'x' * 43}"])
async def test_output_of_another_token_is_no_input(harness: Harness, base: str, ticket: str) -> None:
    response = await harness.create(harness.other, image=f"{base}{ticket}{harness.output}")
    assert (response.status_code, response.json()["invalid_fields"][0]["field"]) == (422, "input.image")


async def test_output_is_an_input_for_its_owner_and_with_a_link() -> None:
    app = make_app(FakePool((Started(), ImageFinished(0, png(64, 64)), DONE)), PUBLIC, token="operator")
    (_, owner), (_, other) = await add_token(app.database), await add_token(app.database)
    harness = Harness(app, owner, other)
    link = (await harness.create(owner)).json()["output"][0]
    direct = f"{BASE}/outputs/" + link.partition("/outputs/")[2]
    for headers, url in ((owner, direct), (OPERATOR, direct), (owner, link), (other, link)):
        assert (await harness.create(headers, image=url)).json()["status"] == "succeeded"


@pytest.mark.parametrize("path", ["/v1/predictions", "/predictions", "/v1/images/generations"])
async def test_token_has_a_limited_number_of_unfinished_predictions(path: str) -> None:
    pool = FakePool(ONE_IMAGE, may_start=False)
    app = make_app(pool, PUBLIC, token="operator")
    _, headers = await add_token(app.database, max_in_flight=1)
    harness = Harness(app, headers, OPERATOR)
    body = {"prompt": "a cat"} if "images" in path else {"input": CAT}
    assert (await harness.request(headers, "POST", "/v1/predictions", json={"input": CAT})).status_code == 201
    rejected = await harness.request(headers, "POST", path, json=body)
    assert rejected.status_code == 429
    assert int(rejected.headers["Retry-After"]) >= 1
    assert "1 unfinished" in rejected.text
    assert (await harness.request(OPERATOR, "POST", "/v1/predictions", json={"input": CAT})).status_code == 201
