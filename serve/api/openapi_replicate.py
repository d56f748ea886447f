"""Adds the endpoints of the Replicate API to the OpenAPI document."""

import re
from typing import NamedTuple

from serve.api.openapi import Schema, openapi_document, reference
from serve.api.openapi_cog import ERROR as COG_ERROR
from serve.api.openapi_cog import add_cog_api
from serve.api.openapi_openai import add_images_api
from serve.api.openapi_schemas import (
    MODEL_PREDICTION_BODY,
    OBJECT,
    PREDICTION_BODY,
    SCHEMAS,
    TEXT,
    TEXT_OR_NULL,
    TIME,
    UPLOAD,
    parameter,
)
from serve.media.image_codec import MEDIA_TYPES
from serve.settings import ServedModel


class Operation(NamedTuple):
    method: str
    path: str
    status: str
    schema: Schema | None
    """Of a JSON response; None for other responses, and for none."""


def _page(schema: str) -> Schema:
    """A page of a list; `next` is the URL of the next page."""
    results = {"type": "array", "items": reference(schema)}
    return {"type": "object", "properties": {"previous": TEXT_OR_NULL, "next": TEXT_OR_NULL, "results": results}}


def _model_list() -> Schema:
    """A page of Replicate's API and a list of OpenAI's."""
    page = _page("Model")
    data = {"type": "array", "items": reference("OpenAIModel")}
    return page | {"properties": {**page["properties"], "object": TEXT, "data": data}}


MODEL = "/v1/models/{owner}/{name}"
DEPLOYMENT = "/v1/deployments/{owner}/{name}"
OPERATIONS = (
    Operation("post", "/v1/predictions", "201", reference("Prediction")),
    Operation("get", "/v1/predictions", "200", _page("Prediction")),
    Operation("get", "/v1/predictions/{prediction_id}", "200", reference("Prediction")),
    Operation("post", "/v1/predictions/{prediction_id}/cancel", "200", reference("Prediction")),
    Operation("get", "/v1/predictions/{prediction_id}/stream", "200", None),
    Operation("post", f"{MODEL}/predictions", "201", reference("Prediction")),
    Operation("post", f"{DEPLOYMENT}/predictions", "201", reference("Prediction")),
    Operation("get", "/v1/models", "200", _model_list()),
    Operation("x-query", "/v1/models", "200", _page("Model")),
    Operation("get", "/v1/models/{model_id}", "200", reference("OpenAIModel")),
    Operation("get", MODEL, "200", reference("Model")),
    Operation("get", f"{MODEL}/readme", "200", None),
    Operation("get", f"{MODEL}/examples", "200", _page("Prediction")),
    Operation("get", f"{MODEL}/versions", "200", _page("Version")),
    Operation("get", f"{MODEL}/versions/{{version}}", "200", reference("Version")),
    Operation("get", "/v1/deployments", "200", _page("Deployment")),
    Operation("get", DEPLOYMENT, "200", reference("Deployment")),
    Operation("get", "/v1/hardware", "200", {"type": "array", "items": reference("Hardware")}),
    Operation("get", "/v1/collections", "200", _page("Collection")),
    Operation("get", "/v1/collections/{slug}", "200", reference("Collection")),
    Operation("get", "/v1/search", "200", reference("SearchResults")),
    Operation("get", "/v1/webhooks/default/secret", "200", reference("WebhookSecret")),
    Operation("get", "/v1/account", "200", reference("Account")),
    Operation("post", "/v1/files", "201", reference("File")),
    Operation("get", "/v1/files", "200", _page("File")),
    Operation("get", "/v1/files/{file_id}", "200", reference("File")),
    Operation("delete", "/v1/files/{file_id}", "204", None),
    Operation("get", "/v1/files/{file_id}/download", "200", None),
    Operation("get", "/outputs/{prediction_id}/{number}/{name}", "200", None),
    Operation("get", "/openapi.json", "200", OBJECT),
    Operation("get", "/readyz", "200", reference("Readiness")),
    # Changes of what is in the operator's settings.
    Operation("post", "/v1/models", "403", None),
    Operation("patch", MODEL, "403", None),
    Operation("delete", MODEL, "403", None),
    Operation("delete", f"{MODEL}/versions/{{version}}", "403", None),
    Operation("post", "/v1/deployments", "403", None),
    Operation("patch", DEPLOYMENT, "403", None),
    Operation("delete", DEPLOYMENT, "403", None),
)
"""OpenAPI 3.0 has no operation for the method QUERY, so that one is an extension."""

BODIES: dict[str, dict[str, Schema]] = {
    "/v1/files": {"multipart/form-data": {"schema": UPLOAD}},
    "/v1/predictions": {"application/json": {"schema": PREDICTION_BODY}},
    f"{MODEL}/predictions": {"application/json": {"schema": MODEL_PREDICTION_BODY}},
    f"{DEPLOYMENT}/predictions": {"application/json": {"schema": MODEL_PREDICTION_BODY}},
}
"""By the path of a POST."""
FILE: Schema = {"type": "string", "format": "binary"}
EVENT = reference("PredictionEvent")
CONTENTS: dict[str, dict[str, Schema]] = {
    "readme": {"text/plain": {"schema": TEXT}},
    "download": {"application/octet-stream": {"schema": FILE}, "image/*": {"schema": FILE}},
    "stream": {"text/event-stream": {"schema": EVENT}},
    "{name}": {media_type: {"schema": FILE} for media_type in MEDIA_TYPES.values()},
}
"""Of responses that are not JSON, by the end of the path."""
FILE_ENDS = ("download", "{name}")
FILE_RESPONSES: dict[str, str] = {
    "206": "The requested range",
    "304": "The client has the file",
    "416": "The range starts after the end of the file",
}
QUERIES: dict[str, dict[str, Schema]] = {
    "/v1/predictions": {"cursor": TEXT, "created_after": TIME, "created_before": TIME},
    "/v1/predictions/{prediction_id}/stream": {"progress": {"type": "boolean"}},
    "/v1/files": {"cursor": TEXT},
    "/v1/search": {"query": TEXT, "limit": {"type": "integer", "minimum": 1, "maximum": 50}},
}
"""The query parameters of GET, by path."""
CREATION_HEADERS: dict[str, Schema] = {
    "Prefer": TEXT,
    "Cancel-After": TEXT | {"pattern": r"^(?=\d)(\d{1,6}h)?(\d{1,6}m)?(\d{1,6}s?)?$", "example": "90s"},
    "Idempotency-Key": TEXT | {"pattern": "^[!-~]{1,255}$"},
}
STREAM_HEADERS: dict[str, Schema] = {"Last-Event-ID": TEXT | {"pattern": "^[0-9]{1,15}:[0-9]{1,18}$"}}
FILE_HEADERS: dict[str, Schema] = {"Range": TEXT, "If-Range": TEXT, "If-None-Match": TEXT}


def service_document(model: ServedModel) -> Schema:
    """The document of the whole service: the Cog API for `model`, the Replicate API, and OpenAI's Images API."""
    document = openapi_document(model)
    paths, schemas = document["paths"], document["components"]["schemas"]
    add_cog_api(document)
    for name, properties in SCHEMAS.items():
        schemas[name] = {"title": name, "type": "object", "properties": properties}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    add_images_api(document)
    return document


def _operation(operation: Operation) -> Schema:
    method, path, _, _ = operation
    parameters = [parameter("path", name, TEXT, required=True) for name in re.findall(r"{(\w+)}", path)]
    queries = QUERIES.get(path, {}) if method == "get" else {}
    parameters += [parameter("query", name, schema, required=name == "query") for name, schema in queries.items()]
    parameters += [parameter("header", name, schema) for name, schema in _headers(method, path).items()]
    described: Schema = {
        "operationId": re.sub(r"\W+", "_", f"{method}{path}").strip("_"),
        "responses": _responses(operation),
        "parameters": parameters,
    }
    if method == "post" and path in BODIES:
        described["requestBody"] = {"required": True, "content": BODIES[path]}
    if method == "x-query":
        described["requestBody"] = {"required": True, "content": {"text/plain": {"schema": TEXT}}}
    return described


def _responses(operation: Operation) -> dict[str, Schema]:
    problem: Schema = {"application/problem+json": {"schema": reference("Problem")}}
    error = {"description": "Error", "content": problem} if operation.path.startswith("/v1/") else COG_ERROR
    errors: dict[str, Schema] = {"4XX": error, "5XX": error}
    if operation.status == "403":
        return {"403": {"description": "Not permitted", "content": problem}, **errors}
    end = operation.path.rpartition("/")[2]
    response: Schema = {"description": "Successful Response"}
    if operation.schema is not None:
        response["content"] = {"application/json": {"schema": operation.schema}}
    elif operation.method == "get":
        response["content"] = CONTENTS[end]
    responses = {operation.status: response}
    if end in FILE_ENDS and operation.method == "get":
        responses |= {status: {"description": text} for status, text in FILE_RESPONSES.items()}
        responses["206"]["content"] = CONTENTS[end]
    if end == "stream":
        responses["204"] = {"description": "The client has all events"}
    return responses | errors


def _headers(method: str, path: str) -> dict[str, Schema]:
    """The headers that an operation reads."""
    if path.endswith("predictions") and method == "post":
        return CREATION_HEADERS
    if path.endswith("stream"):
        return STREAM_HEADERS
    return FILE_HEADERS if path.endswith(FILE_ENDS) and method == "get" else {}
