"""The part of the OpenAPI document about OpenAI's Images API."""

from typing import Any

import jsonschema
import pytest

from serve.api.openai.parameters import OWN_INPUTS, Parameters
from serve.api.openapi_replicate import service_document
from serve.settings import Settings
from tests.app_factory import make_app
from tests.fakes import ONE_IMAGE, FakePool

DOCUMENT = service_document(Settings().served_models[0])


def body_schema(path: str, media_type: str) -> dict[str, Any]:
    schema = DOCUMENT["paths"][path]["post"]["requestBody"]["content"][media_type]["schema"]
    assert isinstance(schema, dict)
    return schema


@pytest.mark.parametrize(
    ("path", "media_type", "files"),
    [
        ("/v1/images/generations", "application/json", set[str]()),
        ("/v1/images/edits", "multipart/form-data", {"image", "mask"}),
    ],
)
def test_bodies_have_every_parameter(path: str, media_type: str, files: set[str]) -> None:
    schema = body_schema(path, media_type)
    aliases = Settings().served_models[0].input_aliases.keys()
    assert schema["properties"].keys() == Parameters.model_fields.keys() | OWN_INPUTS | aliases | files
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"prompt"} | (files - {"mask"})


def test_parameters_have_types_bounds_and_defaults() -> None:
    properties = body_schema("/v1/images/edits", "multipart/form-data")["properties"]
    assert properties["n"] == {"type": "integer", "minimum": 1, "maximum": 10, "default": 1}
    assert properties["output_compression"] == {"type": "integer", "minimum": 0, "maximum": 100}
    assert properties["response_format"] == {"type": "string", "enum": ["url", "b64_json"]}
    assert properties["stream"] == {"type": "boolean", "default": False}
    assert properties["num_inference_steps"]["maximum"] == 50


@pytest.mark.parametrize(
    ("body", "schema"), [({"prompt": "a cat"}, "ImagesResponse"), ({"prompt": "a cat", "n": 11}, "ImagesError")]
)
async def test_responses_match_their_schemas(body: dict[str, Any], schema: str) -> None:
    app = make_app(FakePool(ONE_IMAGE))
    async with app.http as client:
        response = (await client.post("/v1/images/generations", json=body)).json()
    properties = DOCUMENT["components"]["schemas"][schema]["properties"]
    assert response.keys() == properties.keys()
    for name, value in response.items():
        if schema == "ImagesResponse":
            jsonschema.validate(value, properties[name])
        else:
            assert value.keys() == properties[name]["properties"].keys()
