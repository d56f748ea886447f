"""The schemas of the Replicate API in the OpenAPI document."""

from serve.api.openapi import Schema, reference
from serve.predictions.webhook import WEBHOOK_EVENTS


def nullable(schema: Schema) -> Schema:
    """`schema` with null. OpenAPI 3.0 ignores keys beside `$ref`."""
    return {"allOf": [schema], "nullable": True} if "$ref" in schema else schema | {"nullable": True}


def parameter(place: str, name: str, schema: Schema, required: bool = False) -> Schema:
    """A parameter in the path, the query or a header."""
    return {"name": name, "in": place, "required": required, "schema": schema}


TEXT: Schema = {"type": "string"}
TIME: Schema = {"type": "string", "format": "date-time"}
TEXT_OR_NULL: Schema = TEXT | {"nullable": True}
TIME_OR_NULL: Schema = TIME | {"nullable": True}
URLS: Schema = {"type": "object", "additionalProperties": {"type": "string", "format": "uri"}}
OBJECT: Schema = {"type": "object"}
OPENAI_MODEL: dict[str, Schema] = {"id": TEXT, "object": TEXT, "created": {"type": "integer"}, "owned_by": TEXT}
"""The fields of OpenAI's model object, which `GET /v1/models/{owner}/{name}` has beside Replicate's."""

SCHEMAS: dict[str, dict[str, Schema]] = {
    "Prediction": {
        "id": TEXT,
        "model": TEXT,
        "version": TEXT,
        "status": reference("Status"),
        "input": OBJECT,
        "output": nullable(reference("Output")),
        "error": TEXT_OR_NULL,
        "logs": TEXT,
        "metrics": OBJECT,
        "data_removed": {"type": "boolean"},
        "created_at": TIME,
        "started_at": TIME_OR_NULL,
        "completed_at": TIME_OR_NULL,
        "deadline": TIME,
        "urls": URLS,
    },
    "File": {
        "id": TEXT,
        "name": TEXT,
        "content_type": TEXT,
        "size": {"type": "integer"},
        "etag": TEXT,
        "checksums": OBJECT,
        "metadata": OBJECT,
        "created_at": TIME,
        "expires_at": TIME,
        "urls": URLS,
    },
    "Version": {"id": TEXT, "created_at": TIME, "cog_version": TEXT, "openapi_schema": OBJECT},
    "OpenAIModel": OPENAI_MODEL,
    "Model": {
        **OPENAI_MODEL,
        "url": TEXT,
        "owner": TEXT,
        "name": TEXT,
        "description": TEXT_OR_NULL,
        "visibility": TEXT,
        "is_official": {"type": "boolean"},
        "github_url": TEXT_OR_NULL,
        "paper_url": TEXT_OR_NULL,
        "license_url": TEXT_OR_NULL,
        "run_count": {"type": "integer"},
        "cover_image_url": TEXT_OR_NULL,
        "default_example": OBJECT | {"nullable": True},
        "latest_version": reference("Version"),
    },
    "Deployment": {
        "owner": TEXT,
        "name": TEXT,
        "current_release": {
            "type": "object",
            "properties": {
                "number": {"type": "integer"},
                "model": TEXT,
                "version": TEXT,
                "created_at": TIME,
                "created_by": reference("Account"),
                "configuration": OBJECT,
            },
        },
    },
    "Hardware": {"sku": TEXT, "name": TEXT},
    "Collection": {
        "slug": TEXT,
        "name": TEXT,
        "description": TEXT,
        "full_description": TEXT_OR_NULL,
        "models": {"type": "array", "items": reference("Model")},
    },
    "SearchResults": {
        "query": TEXT,
        "models": {"type": "array", "items": OBJECT},
        "collections": {"type": "array", "items": reference("Collection")},
        "pages": {"type": "array", "items": OBJECT},
    },
    "WebhookSecret": {"key": TEXT},
    "PredictionEvent": {
        "event": {"type": "string", "enum": ["logs", "progress", "output", "error", "done"]},
        "id": TEXT,
        "data": TEXT,
    },
    "Readiness": {"status": TEXT},
    "Account": {"type": TEXT, "username": TEXT, "name": TEXT, "github_url": TEXT_OR_NULL},
    "Problem": {
        "title": TEXT,
        "detail": TEXT,
        "status": {"type": "integer"},
        "invalid_fields": {"type": "array", "items": OBJECT},
        "retry_after": {"type": "number"},
    },
}
UPLOAD: Schema = {
    "type": "object",
    "properties": {
        "content": {"type": "string", "format": "binary"},
        "metadata": OBJECT,
        "filename": TEXT,
        "type": TEXT,
    },
    "required": ["content"],
    "additionalProperties": False,
}
WEB_URL: Schema = TEXT | {"format": "uri", "pattern": "^https?://"}
MODEL_PREDICTION_FIELDS: dict[str, Schema] = {
    "input": reference("PredictionInput"),
    "stream": nullable({"type": "boolean"}),
    "webhook": nullable(WEB_URL),
    "webhook_events_filter": nullable(
        {"type": "array", "items": {"type": "string", "enum": list(WEBHOOK_EVENTS)}},
    ),
}


def _prediction_body(fields: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": fields, "required": ["input"], "additionalProperties": False}


MODEL_PREDICTION_BODY = _prediction_body(MODEL_PREDICTION_FIELDS)
PREDICTION_BODY = _prediction_body(MODEL_PREDICTION_FIELDS | {"version": TEXT_OR_NULL})
