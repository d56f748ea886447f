"""Adds to the OpenAPI document what this service's Cog API has beyond the document of a Cog container."""

from serve.api.openapi import Schema, reference
from serve.api.openapi_schemas import OBJECT, TEXT, TEXT_OR_NULL, TIME, TIME_OR_NULL, WEB_URL, nullable, parameter

INPUT = "PredictionInput"
SCHEMAS: dict[str, dict[str, Schema]] = {
    "CogHealth": {
        "status": {"type": "string", "enum": ["STARTING", "READY", "BUSY", "SETUP_FAILED", "DEFUNCT"]},
        "setup": {
            "type": "object",
            "properties": {
                "started_at": TIME,
                "completed_at": TIME_OR_NULL,
                "status": {"type": "string", "enum": ["starting", "succeeded", "failed"]},
                "logs": TEXT,
            },
        },
    },
    "CogError": {"detail": {"anyOf": [TEXT, {"type": "array", "items": reference("ValidationError")}]}},
}
ERROR: Schema = {"description": "Error", "content": {"application/json": {"schema": reference("CogError")}}}


def add_cog_api(document: Schema) -> None:
    """Adds the schemas, and replaces the operations. `document` is that of a Cog container."""
    _add_schemas(document["components"]["schemas"])
    _replace_operations(document["paths"])


def _add_schemas(schemas: dict[str, Schema]) -> None:
    for name, properties in SCHEMAS.items():
        schemas[name] = {"title": name, "type": "object", "properties": properties}
    inputs = _nullable_values(schemas["Input"]) | {"title": INPUT}
    for name in ("image", "mask"):
        inputs["properties"][name] |= {"pattern": "^([Hh][Tt][Tt][Pp][Ss]?://|[Dd][Aa][Tt][Aa]:)."}
    schemas[INPUT] = inputs
    request = _nullable_values(schemas["PredictionRequest"])
    fields = request["properties"] | {"input": reference(INPUT)}
    for name in ("webhook", "output_file_prefix"):
        fields[name] = fields[name] | WEB_URL
    schemas["PredictionRequest"] = request | {"properties": fields}
    response = schemas["PredictionResponse"]["properties"] | {
        # Empty if its data was removed.
        "input": OBJECT,
        "output": nullable(reference("Output")),
        "started_at": TIME_OR_NULL,
        "completed_at": TIME_OR_NULL,
        "error": TEXT_OR_NULL,
    }
    schemas["PredictionResponse"] = {"title": "PredictionResponse", "type": "object", "properties": response}


def _replace_operations(paths: dict[str, Schema]) -> None:
    _add_responses(paths["/"]["get"], {"200": OBJECT | {"additionalProperties": TEXT}})
    _add_responses(paths["/health-check"]["get"], {"200": reference("CogHealth")})
    prediction = reference("PredictionResponse")
    for operation in (paths["/predictions"]["post"], paths["/predictions/{prediction_id}"]["put"]):
        # 202 is the response to `Prefer: respond-async`.
        _add_responses(operation, {"200": prediction, "202": prediction})
        operation["parameters"] = [*operation.get("parameters", ()), parameter("header", "Prefer", TEXT)]
    cancel = {
        "summary": "Cancel",
        "operationId": "cancel_predictions__prediction_id__cancel_post",
        "parameters": [parameter("path", "prediction_id", TEXT, required=True)],
    }
    _add_responses(cancel, {"200": OBJECT})
    paths["/predictions/{prediction_id}/cancel"] = {"post": cancel}


def _nullable_values(schema: Schema) -> Schema:
    """`schema` with null for the properties that are not required: it means the same as leaving them out."""
    required = schema["required"]
    properties = {name: value if name in required else nullable(value) for name, value in schema["properties"].items()}
    return schema | {"properties": properties}


def _add_responses(operation: Schema, schemas: dict[str, Schema]) -> None:
    successes = {
        status: {"description": "Successful Response", "content": {"application/json": {"schema": schema}}}
        for status, schema in schemas.items()
    }
    operation["responses"] = {**successes, "4XX": ERROR, "5XX": ERROR}
