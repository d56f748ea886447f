"""Adds OpenAI's Images API to the OpenAPI document."""

from typing import Any

from serve.api.openai.parameters import OWN_INPUTS, Parameters
from serve.api.openapi import BOUNDS, Schema, reference
from serve.api.openapi_schemas import nullable
from serve.inputs import Inputs

TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
FILE: Schema = {"type": "string", "format": "binary"}
TOKENS: Schema = {"type": "object", "properties": {"text_tokens": INTEGER, "image_tokens": INTEGER}}

SCHEMAS: dict[str, dict[str, Schema]] = {
    "ImagesResponse": {
        "created": INTEGER,
        "data": {"type": "array", "items": {"type": "object", "properties": {"b64_json": TEXT, "url": TEXT}}},
        "background": TEXT,
        "output_format": TEXT,
        "quality": TEXT,
        "size": TEXT,
        "usage": {
            "type": "object",
            "properties": {
                "input_tokens": INTEGER,
                "input_tokens_details": TOKENS,
                "output_tokens": INTEGER,
                "output_tokens_details": TOKENS,
                "total_tokens": INTEGER,
            },
        },
    },
    # The data is JSON.
    "ImagesEvent": {"event": TEXT, "data": TEXT},
    "ImagesError": {
        "error": {
            "type": "object",
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": TEXT | {"nullable": True},
                "code": TEXT | {"nullable": True},
            },
        }
    },
}
ERROR: Schema = {"description": "Error", "content": {"application/json": {"schema": reference("ImagesError")}}}
FILES: dict[str, Schema] = {"image": FILE, "mask": FILE}


def add_images_api(document: Schema) -> None:
    """Adds the paths and schemas. `document` has the schema `Input` already."""
    schemas = document["components"]["schemas"]
    for name, properties in SCHEMAS.items():
        schemas[name] = {"title": name, "type": "object", "properties": properties}
    # Those that are not inputs are aliases of the model.
    own_inputs = {
        name: schema
        for name, schema in schemas["Input"]["properties"].items()
        if name in OWN_INPUTS or name not in Inputs.model_fields
    }
    fields = {name: _parameter(field) for name, field in Parameters.model_json_schema()["properties"].items()}
    parameters = fields | own_inputs
    optional = {name: nullable(schema) for name, schema in parameters.items() if name != "prompt"}
    generation = _body(parameters | optional, required=["prompt"])
    edit = _body(FILES | parameters, required=["image", "prompt"])
    paths = document["paths"]
    paths["/v1/images/generations"] = {"post": _operation("post_v1_images_generations", "application/json", generation)}
    paths["/v1/images/edits"] = {"post": _operation("post_v1_images_edits", "multipart/form-data", edit)}


def _body(properties: dict[str, Schema], required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _parameter(field: Schema) -> Schema:
    """A property of pydantic's schema as OpenAPI 3.0 has it, which has no null."""
    value = next((each for each in field.get("anyOf", ()) if each["type"] != "null"), field)
    schema: dict[str, Any] = {key: value[key] for key in ("type", "enum") if key in value}
    schema |= {BOUNDS[key]: limit for key, limit in value.items() if key in BOUNDS}
    default = field.get("default")
    return schema if default is None else schema | {"default": default}


def _operation(operation_id: str, media_type: str, body: Schema) -> Schema:
    return {
        "operationId": operation_id,
        "requestBody": {"required": True, "content": {media_type: {"schema": body}}},
        "responses": {
            "200": {
                "description": "Successful Response",
                "content": {
                    "application/json": {"schema": reference("ImagesResponse")},
                    "text/event-stream": {"schema": reference("ImagesEvent")},
                },
            },
            "4XX": ERROR,
            "5XX": ERROR,
        },
    }
