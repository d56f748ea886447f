"""Builds the OpenAPI document of a served model from `serve.inputs`, in the form that Cog containers publish."""

from functools import cache
from typing import Any, get_args

from serve.inputs import Inputs
from serve.media.output_store import PREDICTION_ID
from serve.predictions.prediction import Status
from serve.predictions.webhook import WEBHOOK_EVENTS
from serve.settings import ServedModel

COG_VERSION = "0.15.8"
"""The Cog release whose API and response format this service follows."""

Schema = dict[str, Any]

JSON_SCHEMA_BOUNDS = {"minimum": "minimum", "maximum": "maximum", "choices": "enum"}
"""The fields of `serve.settings.InputBounds`."""
BOUNDS = {"ge": "minimum", "le": "maximum", "minimum": "minimum", "maximum": "maximum"}
OUTPUT: Schema = {"title": "Output", "type": "array", "items": {"type": "string", "format": "uri"}}


def openapi_document(model: ServedModel) -> Schema:
    """The document of the Cog API for `model`; its `default_inputs` become the defaults of the schema."""
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": {
            "/": {"get": _operation("Root", "root__get", {})},
            "/health-check": {"get": _operation("Healthcheck", "healthcheck_health_check_get", {})},
            "/predictions": {"post": _predict_operation("Predict", "predict_predictions_post")},
            "/predictions/{prediction_id}": {"put": _put_operation()},
        },
        "components": {"schemas": _components(model)},
    }


def _components(model: ServedModel) -> dict[str, Schema]:
    fields, defaults = _input_fields(model), model.default_inputs
    inputs = {
        name: _input(name, order, field, defaults.get(name, field.get("default")))
        for order, (name, field) in enumerate(fields.items())
    }
    for order, (alias, name) in enumerate(model.input_aliases.items(), len(inputs)):
        inputs[alias] = inputs[name] | {"description": f"Another name for `{name}`.", "x-order": order}
    required = [name for name, field in Inputs.model_fields.items() if field.is_required() and name not in defaults]
    return {
        "Input": {"title": "Input", "type": "object", "properties": inputs, "required": required},
        "Output": OUTPUT,
        **{
            name: {"title": name, "type": "string", "enum": each["enum"], "description": "An enumeration."}
            for name, each in fields.items()
            if "enum" in each
        },
        "Status": {
            "title": "Status",
            "type": "string",
            "enum": list(get_args(Status)),
            "description": "An enumeration.",
        },
        "PredictionRequest": {
            "title": "PredictionRequest",
            "type": "object",
            "properties": {
                "input": reference("Input"),
                "id": {"title": "Id", "type": "string", "pattern": f"^{PREDICTION_ID.pattern}$"},
                "created_at": {"title": "Created At", "type": "string", "format": "date-time"},
                "context": {"title": "Context", "type": "object", "additionalProperties": {"type": "string"}},
                "output_file_prefix": {"title": "Output File Prefix", "type": "string", "format": "uri"},
                "webhook": {"title": "Webhook", "type": "string", "format": "uri"},
                "webhook_events_filter": {
                    "title": "Webhook Events Filter",
                    "type": "array",
                    "items": reference("WebhookEvent"),
                    "default": list(WEBHOOK_EVENTS),
                },
            },
            "required": ["input"],
            "additionalProperties": False,
        },
        "WebhookEvent": {
            "title": "WebhookEvent",
            "type": "string",
            "enum": list(WEBHOOK_EVENTS),
            "description": "An enumeration.",
        },
        "PredictionResponse": _response(),
        "ValidationError": _validation_error(),
        "HTTPValidationError": {
            "title": "HTTPValidationError",
            "type": "object",
            "properties": {"detail": {"title": "Detail", "type": "array", "items": reference("ValidationError")}},
        },
    }


@cache
def _inputs_schema() -> Schema:
    """Built once: it takes ten milliseconds, and lists of models need it for each model."""
    return Inputs.model_json_schema()


def _input_fields(model: ServedModel) -> dict[str, Schema]:
    """The schema of each input, not nullable and with the narrower bounds of `model`."""
    fields = {}
    for name, field in _inputs_schema()["properties"].items():
        value_schema: Schema = next((each for each in field.get("anyOf", ()) if each["type"] != "null"), {})
        narrower = model.input_bounds[name].model_dump(exclude_none=True) if name in model.input_bounds else {}
        fields[name] = field | value_schema | {JSON_SCHEMA_BOUNDS[key]: value for key, value in narrower.items()}
    return fields


def _input(name: str, order: int, field: Schema, default: object) -> Schema:
    """One property in Cog's form: enums are components of their own."""
    schema: Schema = {"description": field["description"], "x-order": order}
    if default is not None:
        schema["default"] = default
    if "enum" in field:
        return schema | {"allOf": [reference(name)]}
    schema |= {"title": field["title"], "type": field["type"]}
    schema |= {BOUNDS[key]: float(value) for key, value in field.items() if key in BOUNDS}
    return schema | ({"format": field["format"]} if "format" in field else {})


def _response() -> Schema:
    timestamp = {"type": "string", "format": "date-time"}
    return {
        "title": "PredictionResponse",
        "type": "object",
        "properties": {
            "input": reference("Input"),
            "output": reference("Output"),
            "id": {"title": "Id", "type": "string"},
            "version": {"title": "Version", "type": "string"},
            "created_at": {"title": "Created At", **timestamp},
            "started_at": {"title": "Started At", **timestamp},
            "completed_at": {"title": "Completed At", **timestamp},
            "logs": {"title": "Logs", "type": "string", "default": ""},
            "error": {"title": "Error", "type": "string"},
            "status": reference("Status"),
            "metrics": {"title": "Metrics", "type": "object"},
        },
        "required": ["input"],
    }


def _validation_error() -> Schema:
    location_part = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
    return {
        "title": "ValidationError",
        "type": "object",
        "properties": {
            "loc": {"title": "Location", "type": "array", "items": location_part},
            "msg": {"title": "Message", "type": "string"},
            "type": {"title": "Error Type", "type": "string"},
        },
        "required": ["loc", "msg", "type"],
    }


def _put_operation() -> Schema:
    parameter = {"name": "prediction_id", "in": "path", "required": True, "schema": {"type": "string"}}
    operation = _predict_operation("Predict Idempotent", "predict_idempotent_predictions__prediction_id__put")
    return operation | {"parameters": [parameter]}


def _predict_operation(summary: str, operation_id: str) -> Schema:
    invalid = {"description": "Validation Error", "content": _json(reference("HTTPValidationError"))}
    return {
        **_operation(summary, operation_id, reference("PredictionResponse")),
        "requestBody": {"required": True, "content": _json(reference("PredictionRequest"))},
    } | {"responses": {"200": _success(reference("PredictionResponse")), "422": invalid}}


def _operation(summary: str, operation_id: str, schema: Schema) -> Schema:
    return {"summary": summary, "operationId": operation_id, "responses": {"200": _success(schema)}}


def _success(schema: Schema) -> Schema:
    return {"description": "Successful Response", "content": _json(schema)}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
