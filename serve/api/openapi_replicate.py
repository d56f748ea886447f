"""Adds the endpoints of the Replicate API to the OpenAPI document."""

import re
from typing import Any

from serve.api.openapi import Schema, openapi_document
from serve.api.openapi_openai import add_images_api
from serve.settings import ServedModel

TEXT: Schema = {"type": "string"}
TIME: Schema = {"type": "string", "format": "date-time"}
TEXT_OR_NULL: Schema = TEXT | {"nullable": True}
TIME_OR_NULL: Schema = TIME | {"nullable": True}
URLS: Schema = {"type": "object", "additionalProperties": {"type": "string", "format": "uri"}}
OBJECT: Schema = {"type": "object"}

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
    "Model": {
        "url": TEXT,
        "owner": TEXT,
        "name": TEXT,
        "description": TEXT_OR_NULL,
        "visibility": TEXT,
        "github_url": TEXT_OR_NULL,
        "paper_url": TEXT_OR_NULL,
        "license_url": TEXT_OR_NULL,
        "run_count": {"type": "integer"},
        "cover_image_url": TEXT_OR_NULL,
        "default_example": OBJECT | {"nullable": True},
        "latest_version": {"$ref": "#/components/schemas/Version"},
    },
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
PREDICTION_BODY: Schema = {
    "type": "object",
    "properties": {"input": {"$ref": "#/components/schemas/Input"}, "version": TEXT},
    "required": ["input"],
}

OPERATIONS: tuple[tuple[str, str, str, str, bool], ...] = (
    ("post", "/v1/predictions", "201", "Prediction", False),
    ("get", "/v1/predictions", "200", "Prediction", True),
    ("get", "/v1/predictions/{prediction_id}", "200", "Prediction", False),
    ("post", "/v1/predictions/{prediction_id}/cancel", "200", "Prediction", False),
    ("post", "/v1/models/{owner}/{name}/predictions", "201", "Prediction", False),
    ("get", "/v1/models", "200", "Model", True),
    ("get", "/v1/models/{owner}/{name}", "200", "Model", False),
    ("get", "/v1/models/{owner}/{name}/versions", "200", "Version", True),
    ("get", "/v1/models/{owner}/{name}/versions/{version}", "200", "Version", False),
    ("get", "/v1/account", "200", "Account", False),
    ("post", "/v1/files", "201", "File", False),
    ("get", "/v1/files", "200", "File", True),
    ("get", "/v1/files/{file_id}", "200", "File", False),
    ("delete", "/v1/files/{file_id}", "204", "", False),
    ("get", "/v1/files/{file_id}/download", "200", "", False),
)
"""Method, path, status, schema of the response, and whether it is a page of them."""

BODIES: dict[str, dict[str, Schema]] = {
    "/v1/files": {"multipart/form-data": {"schema": UPLOAD}},
    "/v1/predictions": {"application/json": {"schema": PREDICTION_BODY}},
    "/v1/models/{owner}/{name}/predictions": {"application/json": {"schema": PREDICTION_BODY}},
}
"""By the path of a POST."""


def service_document(model: ServedModel) -> Schema:
    """The document of the whole service: the Cog API for `model`, the Replicate API, and OpenAI's Images API."""
    document = openapi_document(model)
    paths, schemas = document["paths"], document["components"]["schemas"]
    for name, properties in SCHEMAS.items():
        schemas[name] = {"title": name, "type": "object", "properties": properties}
    for method, path, status, schema, is_page in OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(method, path, status, schema, is_page)
    add_images_api(document)
    return document


def _operation(method: str, path: str, status: str, schema: str, is_page: bool) -> Schema:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    response: Schema = {"description": "Successful Response"}
    if schema:
        response["content"] = {"application/json": {"schema": _page(schema) if is_page else _reference(schema)}}
    elif status == "200":
        response["content"] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method}{path}").strip("_"),
        "responses": {status: response, "default": {"description": "Error", "content": problem}},
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": TEXT} for name in re.findall(r"{(\w+)}", path)
        ],
    }
    if is_page:
        operation["parameters"].append({"name": "cursor", "in": "query", "required": False, "schema": TEXT})
    if method == "post" and path in BODIES:
        operation["requestBody"] = {"required": True, "content": BODIES[path]}
    return operation


def _reference(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _page(schema: str) -> Schema:
    """A page of a list; `next` is the URL of the next page."""
    results = {"type": "array", "items": _reference(schema)}
    return {"type": "object", "properties": {"previous": TEXT_OR_NULL, "next": TEXT_OR_NULL, "results": results}}
