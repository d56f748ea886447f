"""The schemas of the Replicate API in the OpenAPI document."""

from serve.api.openapi import Schema
from serve.predictions.webhook import WEBHOOK_EVENTS

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
        "status": {"$ref": "#/components/schemas/Status"},
        "input": OBJECT,
        # OpenAPI 3.0 ignores keys beside $ref.
        "output": {"allOf": [{"$ref": "#/components/schemas/Output"}], "nullable": True},
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
        "latest_version": {"$ref": "#/components/schemas/Version"},
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
                "created_by": {"$ref": "#/components/schemas/Account"},
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
        "models": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
    },
    "SearchResults": {
        "query": TEXT,
        "models": {"type": "array", "items": OBJECT},
        "collections": {"type": "array", "items": {"$ref": "#/components/schemas/Collection"}},
        "pages": {"type": "array", "items": OBJECT},
    },
    "WebhookSecret": {"key": TEXT},
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
}
WEBHOOK_FIELDS: dict[str, Schema] = {
    "webhook": {"type": "string", "format": "uri"},
    "webhook_events_filter": {"type": "array", "items": {"type": "string", "enum": list(WEBHOOK_EVENTS)}},
}
PREDICTION_BODY: Schema = {
    "type": "object",
    "properties": {"input": {"$ref": "#/components/schemas/Input"}, "version": TEXT} | WEBHOOK_FIELDS,
    "required": ["input"],
}
MODEL_PREDICTION_BODY: Schema = {
    "type": "object",
    "properties": {"input": {"$ref": "#/components/schemas/Input"}} | WEBHOOK_FIELDS,
    "required": ["input"],
}
