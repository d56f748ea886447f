"""The collections and search endpoints of the Replicate API."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.api.http_messages import DIGITS, InvalidQuery
from serve.api.model_objects import contains_words, find_models, model_json
from serve.api.pages import single_page
from serve.errors import FieldError, NotFound
from serve.predictions.service import PredictionService
from serve.settings import Settings

COLLECTION = {
    "slug": "text-to-image",
    "name": "Text to image",
    "description": "Models that generate images from text prompts.",
}
"""The only collection: all served models."""
DEFAULT_RESULTS = 20
MAX_RESULTS = 50


def routes(service: PredictionService, settings: Settings) -> list[Route]:
    api = DiscoveryApi(service, settings)
    return [
        Route("/v1/collections", api.collections, methods=["GET"]),
        Route("/v1/collections/{slug}", api.collection, methods=["GET"]),
        Route("/v1/search", api.search, methods=["GET"]),
    ]


class DiscoveryApi:
    def __init__(self, service: PredictionService, settings: Settings) -> None:
        self._service = service
        self._settings = settings

    async def collections(self, request: Request) -> Response:
        return JSONResponse(single_page([dict(COLLECTION)]))

    async def collection(self, request: Request) -> Response:
        slug = request.path_params["slug"]
        if slug != COLLECTION["slug"]:
            raise NotFound(f"there is no collection {slug[:100]!r}; GET /v1/collections lists all")
        return JSONResponse({**COLLECTION, "full_description": None, "models": self._models("")})

    async def search(self, request: Request) -> Response:
        query, limit = _parse_search(request)
        found = contains_words(" ".join(COLLECTION.values()), query)
        models = [
            {"model": model, "metadata": {"generated_description": None, "tags": [], "score": 1.0}}
            for model in self._models(query)[:limit]
        ]
        return JSONResponse(
            {"query": query, "models": models, "collections": [dict(COLLECTION)] if found else [], "pages": []}
        )

    def _models(self, query: str) -> list[dict[str, Any]]:
        models = find_models(self._settings, query)
        return [model_json(model, self._settings, self._service.created_at) for model in models]


def _parse_search(request: Request) -> tuple[str, int]:
    """The parameters `query` and `limit`. Raises `InvalidQuery`."""
    query, limit = request.query_params.get("query"), request.query_params.get("limit", str(DEFAULT_RESULTS))
    errors = [] if query is not None else [FieldError("query", "Field required", "missing")]
    if not DIGITS.fullmatch(limit) or not 1 <= int(limit) <= MAX_RESULTS:
        errors.append(FieldError("limit", f"Input should be an integer from 1 to {MAX_RESULTS}", "int_range"))
    if query is None or errors:
        raise InvalidQuery(tuple(errors))
    return query, int(limit)
