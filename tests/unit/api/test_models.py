"""The account and models endpoints, in the forms of Replicate's and OpenAI's APIs."""

from typing import Any

import httpx
import pytest

from serve.settings import ServedModel, Settings
from tests.app_factory import make_app
from tests.fakes import ONE_IMAGE, FakePool

SEED = "fofr/flux-handwriting-and-sketch"
LONG_ID = "d592f697" + "0a" * 28
CAT = {"prompt": "a cat", "num_inference_steps": 2}


async def request(method: str, path: str, settings: Settings | None = None, **arguments: Any) -> httpx.Response:
    async with make_app(FakePool(ONE_IMAGE), settings).http as client:
        return await client.request(method, path, **arguments)


async def get(path: str) -> Any:
    response = await request("GET", path)
    assert response.status_code == 200, response.text
    return response.json()


async def test_models_are_listed_for_both_apis() -> None:
    body = await get("/v1/models")
    names = [f"{model['owner']}/{model['name']}" for model in body["results"]]
    assert {
        "black-forest-labs/flux-dev",
        "black-forest-labs/flux-schnell",
        "black-forest-labs/flux-dev-lora",
        "black-forest-labs/flux-schnell-lora",
        SEED,
    } <= set(names)
    assert (body["previous"], body["next"], body["object"]) == (None, None, "list")
    assert [model["id"] for model in body["data"]] == names
    assert body["data"][0].keys() == {"id", "object", "created", "owned_by"}
    assert body["data"][0]["object"] == "model"
    assert isinstance(body["data"][0]["created"], int)


@pytest.mark.parametrize(
    "model_id",
    ["fofr%2Fflux-handwriting-and-sketch", "fofr%2fflux-handwriting-and-sketch", "flux-handwriting-and-sketch"],
)
async def test_model_in_one_segment_is_the_object_of_openai(model_id: str) -> None:
    model = await get(f"/v1/models/{model_id}")
    assert model == {"id": SEED, "object": "model", "created": model["created"], "owned_by": "fofr"}


async def test_model_in_two_segments_is_the_object_of_both_apis() -> None:
    model = await get(f"/v1/models/{SEED}")
    assert (model["owner"], model["latest_version"]["id"]) == ("fofr", "d592f697")
    assert (model["id"], model["object"], model["owned_by"]) == (SEED, "model", "fofr")


async def test_name_of_two_models_needs_its_owner() -> None:
    models = tuple(ServedModel(owner=owner, name="flux", versions=(owner,)) for owner in ("me", "you"))
    assert (await request("GET", "/v1/models/flux", Settings(served_models=models))).status_code == 404
    assert (await request("GET", "/v1/models/you/flux", Settings(served_models=models))).status_code == 200


@pytest.mark.parametrize("version", ["d592f697", LONG_ID])
async def test_version_is_found_by_the_start_of_its_id(version: str) -> None:
    found = await get(f"/v1/models/{SEED}/versions/{version}")
    assert found["id"] == "d592f697"
    for path, body in (
        ("/v1/predictions", {"input": CAT, "version": version}),
        ("/v1/predictions", {"input": CAT, "version": f"{SEED}:{version}"}),
    ):
        created = await request("POST", path, json=body)
        assert (created.status_code, created.json()["version"], created.json()["model"]) == (201, "d592f697", SEED)


@pytest.mark.parametrize("version", ["d592f69", "d592f698" + "0" * 56, "embedded", "D592F697" + "0" * 56])
async def test_other_versions_are_not_found(version: str) -> None:
    assert (await request("GET", f"/v1/models/{SEED}/versions/{version}")).status_code == 404


async def test_readme_and_examples() -> None:
    readme = await request("GET", f"/v1/models/{SEED}/readme")
    assert readme.headers["Content-Type"].startswith("text/plain")
    assert SEED in readme.text
    assert (await get(f"/v1/models/{SEED}/examples"))["results"] == []
    for path in ("readme", "examples"):
        assert (await request("GET", f"/v1/models/no/model/{path}")).status_code == 404


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"handwriting", ["flux-handwriting-and-sketch"]),
        (b'"handwriting"', ["flux-handwriting-and-sketch"]),
        (b"SKETCH fofr", ["flux-handwriting-and-sketch"]),
        (b"stable-diffusion", []),
        (b"7", []),
    ],
)
async def test_query_searches_models(body: bytes, names: list[str]) -> None:
    response = await request("QUERY", "/v1/models", content=body, headers={"Content-Type": "text/plain"})
    assert response.status_code == 200
    assert [model["name"] for model in response.json()["results"]] == names


@pytest.mark.parametrize(("body", "status"), [(b"\xff", 400), (b"x" * 20_000, 413)])
async def test_unreadable_query_is_rejected(body: bytes, status: int) -> None:
    assert (await request("QUERY", "/v1/models", content=body)).status_code == status


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models"),
        ("PATCH", f"/v1/models/{SEED}"),
        ("DELETE", f"/v1/models/{SEED}"),
        ("DELETE", f"/v1/models/{SEED}/versions/d592f697"),
        ("POST", "/v1/deployments"),
        ("PATCH", "/v1/deployments/me/mine"),
        ("DELETE", "/v1/deployments/me/mine"),
    ],
)
async def test_changes_are_not_permitted(method: str, path: str) -> None:
    response = await request(method, path, json={"name": "mine"})
    assert (response.status_code, response.headers["Content-Type"]) == (403, "application/problem+json")
    assert (response.json()["status"], response.json()["title"]) == (403, "Not permitted")
    assert "settings" in response.json()["detail"]


@pytest.mark.parametrize(
    ("path", "inputs", "steps", "pool"),
    [
        ("black-forest-labs/flux-schnell", {}, 4, "schnell"),
        ("black-forest-labs/flux-schnell-lora", {"num_inference_steps": 1}, 1, "schnell"),
        ("black-forest-labs/flux-dev", {}, 28, "dev-bf16"),
        ("black-forest-labs/flux-dev-lora", {"num_inference_steps": 5}, 5, "dev-bf16"),
    ],
)
async def test_model_has_its_own_defaults(path: str, inputs: dict[str, Any], steps: int, pool: str) -> None:
    generator = FakePool(ONE_IMAGE)
    async with make_app(generator).http as client:
        body = {"input": {"prompt": "a cat", **inputs}}
        created = await client.post(f"/v1/models/{path}/predictions", json=body, headers={"Prefer": "wait"})
    assert created.json()["metrics"]["pool"] == pool
    assert generator.calls[0][0].steps == steps


@pytest.mark.parametrize(
    ("name", "inputs", "field"),
    [
        ("flux-schnell", {"num_inference_steps": 5}, "num_inference_steps"),
        ("flux-schnell-lora", {"num_inference_steps": 28}, "num_inference_steps"),
        ("flux-schnell", {"model": "dev"}, "model"),
        ("flux-dev", {"model": "schnell"}, "model"),
        ("flux-dev", {"guidance": 3, "guidance_scale": 4}, "guidance"),
    ],
)
async def test_model_has_its_own_bounds(name: str, inputs: dict[str, Any], field: str) -> None:
    body = {"input": {"prompt": "a cat", **inputs}}
    response = await request("POST", f"/v1/models/black-forest-labs/{name}/predictions", json=body)
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["invalid_fields"]] == [f"input.{field}"]


async def test_schema_of_a_model_has_its_defaults_bounds_and_aliases() -> None:
    schnell = (await get("/v1/models/black-forest-labs/flux-schnell"))["latest_version"]["openapi_schema"]
    schemas = schnell["components"]["schemas"]
    steps = schemas["Input"]["properties"]["num_inference_steps"]
    assert (steps["minimum"], steps["maximum"], steps["default"]) == (1, 4, 4)
    assert schemas["model"]["enum"] == ["schnell"]
    lora = (await get("/v1/models/black-forest-labs/flux-dev-lora"))["latest_version"]["openapi_schema"]
    inputs = lora["components"]["schemas"]["Input"]["properties"]
    assert (inputs["guidance"]["maximum"], inputs["guidance"]["type"]) == (10, "number")
    assert inputs["lora_weights"]["type"] == "string"


@pytest.mark.parametrize("path", ["/v1/models/black-forest-labs/flux-dev-lora/predictions", "/predictions"])
async def test_inputs_may_have_the_names_of_the_original_model(path: str) -> None:
    generator = FakePool(ONE_IMAGE)
    async with make_app(generator).http as client:
        body = {"input": {"prompt": "a cat", "guidance": 5, "lora_weights": "embedded:sketch"}}
        created = await client.post(path, json=body, headers={"Prefer": "wait"})
    plan = generator.calls[0][0]
    assert (plan.guidance, len(plan.loras)) == (5, 1)
    assert created.json()["input"]["guidance_scale"] == 5
    assert created.json()["input"]["replicate_weights"] == "embedded:sketch"
