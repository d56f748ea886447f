"""The OpenAPI document matches the schema that Replicate publishes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from serve.api.openapi import openapi_document
from serve.api.openapi_replicate import service_document
from serve.settings import DeploymentSettings, ServedModel, Settings
from tests.app_factory import make_app
from tests.fakes import ONE_IMAGE, FakePool
from tests.openapi_schemas import strict

PUBLISHED = Path(__file__).parents[2] / "data" / "input_schema.json"


def without_descriptions(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: without_descriptions(value) for key, value in schema.items() if key != "description"}
    return [without_descriptions(each) for each in schema] if isinstance(schema, list) else schema


def components(model: ServedModel) -> dict[str, Any]:
    schemas = openapi_document(model)["components"]["schemas"]
    assert isinstance(schemas, dict)
    return schemas


def test_schemas_match_the_published_ones_except_descriptions() -> None:
    generated = without_descriptions(components(ServedModel(owner="me", name="plain", versions=("1",))))
    published = json.loads(PUBLISHED.read_text())
    assert {name: generated[name] for name in published} == published


def test_every_input_has_a_description() -> None:
    inputs = components(Settings().served_models[0])["Input"]["properties"]
    assert len(inputs) == 21 + len(Settings().served_models[0].input_aliases)
    assert all(schema["description"] for schema in inputs.values())


def test_bounds_are_floats_and_orders_are_integers_in_json() -> None:
    width = components(Settings().served_models[0])["Input"]["properties"]["width"]
    assert '"minimum": 256.0' in json.dumps(width)
    assert '"x-order": 5' in json.dumps(width)


def test_default_inputs_of_the_model_are_schema_defaults() -> None:
    model = ServedModel(
        owner="me", name="mine", versions=("1",), default_inputs={"prompt": "a cat", "num_inference_steps": 12}
    )
    inputs = components(model)["Input"]
    assert inputs["properties"]["num_inference_steps"]["default"] == 12
    assert inputs["properties"]["prompt"]["default"] == "a cat"
    assert inputs["required"] == []


def test_document_of_the_service_has_every_route_but_links_and_the_playground() -> None:
    app = make_app(FakePool(())).app
    documented = {
        (method.upper(), path)
        for path, operations in service_document(Settings().served_models[0])["paths"].items()
        for method in operations
    }
    routes = [route for route in app.routes if isinstance(route, Route)]
    served = {
        (method.replace("QUERY", "X-QUERY"), route.path)
        for route in routes
        for method in route.methods or ()
        if method != "HEAD"
    }
    described = {(method, path) for method, path in served if not path.startswith(("/links/", "/playground"))}
    assert described <= documented
    assert {(method, path) for method, path in documented if path.startswith("/v1/")} <= served


@pytest.mark.parametrize(
    ("method", "path", "schema"),
    [
        ("POST", "/v1/predictions", "Prediction"),
        ("GET", "/v1/models/black-forest-labs/flux-dev-lora", "Model"),
        ("GET", "/v1/models/flux-schnell", "OpenAIModel"),
        ("GET", "/v1/deployments/studio/fast", "Deployment"),
        ("GET", "/v1/collections/text-to-image", "Collection"),
        ("GET", "/v1/search?query=schnell", "SearchResults"),
        ("GET", "/readyz", "Readiness"),
        ("GET", "/v1/account", "Account"),
        ("GET", "/v1/webhooks/default/secret", "WebhookSecret"),
        ("GET", "/v1/models/black-forest-labs/none", "Problem"),
        ("POST", "/v1/models/black-forest-labs/flux-dev-lora/predictions", "Problem"),
    ],
)
async def test_responses_match_their_schemas(method: str, path: str, schema: str) -> None:
    inputs = {"prompt": "a cat"} if schema == "Prediction" else {"prompt": "a cat", "num_outputs": 9}
    deployment = DeploymentSettings(owner="studio", name="fast", model="black-forest-labs/flux-schnell")
    app = make_app(FakePool(ONE_IMAGE), Settings(deployments=(deployment,)))
    response = await app.http.request(method, path, json={"input": inputs} if method == "POST" else None)
    document = strict(service_document(Settings().served_models[0]))
    jsonschema.validate(response.json(), {**document, "$ref": f"#/components/schemas/{schema}"})


@pytest.mark.parametrize(
    ("build", "some"),
    [
        (openapi_document, {"Input", "Output", "PredictionResponse", "HTTPValidationError"}),
        (service_document, {"PredictionInput", "Output", "PredictionResponse", "CogError", "Problem", "ImagesError"}),
    ],
)
def test_every_reference_has_a_component(build: Callable[[ServedModel], dict[str, Any]], some: set[str]) -> None:
    document = build(Settings().served_models[0])
    names = document["components"]["schemas"].keys()
    references = {part.split('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:]}
    assert references <= names
    assert some <= references
