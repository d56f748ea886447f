"""Adds the endpoints of the Replicate API to the OpenAPI document."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from serve.api.openapi import Schema, openapi_document
from serve.api.openapi_openai import add_images_api
from serve.api.openapi_schemas import MODEL_PREDICTION_BODY, PREDICTION_BODY, SCHEMAS, TEXT, TEXT_OR_NULL, UPLOAD
from serve.settings import ServedModel


class Operation(NamedTuple):
    method: str
    path: str
    status: str
    schema: Schema | None
    """Of a JSON response; None for other responses, and for none."""


def _reference(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _page(schema: str) -> Schema:
    """A page of a list; `next` is the URL of the next page."""
    results = {"type": "array", "items": _reference(schema)}
    return {"type": "object", "properties": {"previous": TEXT_OR_NULL, "next": TEXT_OR_NULL, "results": results}}


def _model_list() -> Schema:
    """A page of Replicate's API and a list of OpenAI's."""
    page = _page("Model")
    data = {"type": "array", "items": _reference("OpenAIModel")}
    return page | {"properties": {**page["properties"], "object": TEXT, "data": data}}


MODEL = "/v1/models/{owner}/{name}"
DEPLOYMENT = "/v1/deployments/{owner}/{name}"
OPERATIONS = (
    Operation("post", "/v1/predictions", "201", _reference("Prediction")),
    Operation("get", "/v1/predictions", "200", _page("Prediction")),
    Operation("get", "/v1/predictions/{prediction_id}", "200", _reference("Prediction")),
    Operation("post", "/v1/predictions/{prediction_id}/cancel", "200", _reference("Prediction")),
    Operation("get", "/v1/predictions/{prediction_id}/stream", "200", None),
    Operation("post", f"{MODEL}/predictions", "201", _reference("Prediction")),
    Operation("post", f"{DEPLOYMENT}/predictions", "201", _reference("Prediction")),
    Operation("get", "/v1/models", "200", _model_list()),
    Operation("x-query", "/v1/models", "200", _page("Model")),
    Operation("get", "/v1/models/{model_id}", "200", _reference("OpenAIModel")),
    Operation("get", MODEL, "200", _reference("Model")),
    Operation("get", f"{MODEL}/readme", "200", None),
    Operation("get", f"{MODEL}/examples", "200", _page("Prediction")),
    Operation("get", f"{MODEL}/versions", "200", _page("Version")),
    Operation("get", f"{MODEL}/versions/{{version}}", "200", _reference("Version")),
    Operation("get", "/v1/deployments", "200", _page("Deployment")),
    Operation("get", DEPLOYMENT, "200", _reference("Deployment")),
    Operation("get", "/v1/hardware", "200", {"type": "array", "items": _reference("Hardware")}),
    Operation("get", "/v1/collections", "200", _page("Collection")),
    Operation("get", "/v1/collections/{slug}", "200", _reference("Collection")),
    Operation("get", "/v1/search", "200", _reference("SearchResults")),
    Operation("get", "/v1/webhooks/default/secret", "200", _reference("WebhookSecret")),
    Operation("get", "/v1/account", "200", _reference("Account")),
    Operation("post", "/v1/files", "201", _reference("File")),
    Operation("get", "/v1/files", "200", _page("File")),
    Operation("get", "/v1/files/{file_id}", "200", _reference("File")),
    Operation("delete", "/v1/files/{file_id}", "204", None),
    Operation("get", "/v1/files/{file_id}/download", "200", None),
    Operation("get", "/readyz", "200", _reference("Readiness")),
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
MEDIA_TYPES = {"readme": "text/plain", "download": "application/octet-stream", "stream": "text/event-stream"}
"""Of responses that are not JSON, by the end of the path."""
QUERIES: dict[str, dict[str, Schema]] = {
    "/v1/predictions": {"cursor": TEXT},
    "/v1/predictions/{prediction_id}/stream": {"progress": {"type": "boolean"}},
    "/v1/files": {"cursor": TEXT},
    "/v1/search": {"query": TEXT, "limit": {"type": "integer", "minimum": 1, "maximum": 50}},
}
"""The query parameters of GET, by path."""
CREATION_HEADERS = ("Prefer", "Cancel-After", "Idempotency-Key")
STREAM_HEADERS = ("Last-Event-ID",)


def service_document(model: ServedModel) -> Schema:
    """The document of the whole service: the Cog API for `model`, and the Replicate API."""
    document = openapi_document(model)
    paths, schemas = document["paths"], document["components"]["schemas"]
    for name, properties in SCHEMAS.items():
        schemas[name] = {"title": name, "type": "object", "properties": properties}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    add_images_api(document)
    return document


def _operation(operation: Operation) -> Schema:
    method, path, status, schema = operation
    problem = {"application/problem+json": {"schema": _reference("Problem")}}
    response: Schema = {"description": "Successful Response"}
    media_type = MEDIA_TYPES.get(path.rpartition("/")[2])
    if schema is not None:
        response["content"] = {"application/json": {"schema": schema}}
    elif media_type is not None:
        response["content"] = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    elif status == "403":
        response = {"description": "Not permitted", "content": problem}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": TEXT} for name in re.findall(r"{(\w+)}", path)
    ]
    if method == "get":
        parameters += [
            {"name": name, "in": "query", "required": name == "query", "schema": each}
            for name, each in QUERIES.get(path, {}).items()
        ]
    described: Schema = {
        "operationId": re.sub(r"\W+", "_", f"{method}{path}").strip("_"),
        "responses": {status: response, "default": {"description": "Error", "content": problem}},
        "parameters": parameters,
    }
    if method == "post" and path in BODIES:
        described["requestBody"] = {"required": True, "content": BODIES[path]}
    if path.endswith("predictions") and method == "post":
        described["parameters"] += _headers(CREATION_HEADERS)
    if path.endswith("stream"):
        described["parameters"] += _headers(STREAM_HEADERS)
    if method == "x-query":
        described["requestBody"] = {"required": True, "content": {"text/plain": {"schema": TEXT}}}
    return described


def _headers(names: Iterable[str]) -> list[Schema]:
    return [{"name": name, "in": "header", "required": False, "schema": TEXT} for name in names]
