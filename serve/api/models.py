"""The account and models endpoints of the Replicate API. `GET /v1/models` is that of OpenAI's API, too."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from serve.api.http_messages import read_body
from serve.api.model_objects import (
    ACCOUNT,
    find_models,
    model_json,
    openai_model_json,
    refuse_change,
    version_json,
)
from serve.api.pages import single_page
from serve.errors import MalformedBody
from serve.predictions.request import resolve_model, resolve_model_id, resolve_model_version
from serve.predictions.service import PredictionService
from serve.settings import ServedModel, Settings

MODEL = "/v1/models/{owner}/{name}"
MAX_QUERY_BYTES = 10_000


def routes(service: PredictionService, settings: Settings) -> list[Route]:
    api = ModelsApi(service, settings)
    return [
        Route("/v1/account", api.account, methods=["GET"]),
        Route("/v1/models", api.page, methods=["GET"]),
        Route("/v1/models", api.search, methods=["QUERY"]),
        Route("/v1/models", refuse_change, methods=["POST"]),
        Route("/v1/models/{model_id}", api.get_by_id, methods=["GET"]),
        Route(MODEL, api.get, methods=["GET"]),
        Route(MODEL, refuse_change, methods=["PATCH", "DELETE"]),
        Route(f"{MODEL}/readme", api.readme, methods=["GET"]),
        Route(f"{MODEL}/examples", api.examples, methods=["GET"]),
        Route(f"{MODEL}/versions", api.versions, methods=["GET"]),
        Route(f"{MODEL}/versions/{{version}}", api.version, methods=["GET"]),
        Route(f"{MODEL}/versions/{{version}}", refuse_change, methods=["DELETE"]),
    ]


class ModelsApi:
    def __init__(self, service: PredictionService, settings: Settings) -> None:
        self._service = service
        self._settings = settings

    async def account(self, request: Request) -> Response:
        return JSONResponse(ACCOUNT)

    async def page(self, request: Request) -> Response:
        """All served models, as Replicate's `results` and as OpenAI's `data`."""
        models = self._settings.served_models
        data = [openai_model_json(model, self._service.created_at) for model in models]
        return JSONResponse(single_page(self._json(models)) | {"object": "list", "data": data})

    async def search(self, request: Request) -> Response:
        query = _search_text(bytes(await read_body(request, MAX_QUERY_BYTES)))
        return JSONResponse(single_page(self._json(find_models(self._settings, query))))

    async def get_by_id(self, request: Request) -> Response:
        model = resolve_model_id(self._settings, request.path_params["model_id"])
        return JSONResponse(openai_model_json(model, self._service.created_at))

    async def get(self, request: Request) -> Response:
        """The model object of both APIs: clients of OpenAI's API may send the slash of an id as it is."""
        model = self._model(request)
        openai_fields = openai_model_json(model, self._service.created_at)
        if _slash_is_encoded(request):
            return JSONResponse(openai_fields)
        return JSONResponse(model_json(model, self._settings, self._service.created_at) | openai_fields)

    async def readme(self, request: Request) -> Response:
        model = self._model(request)
        return PlainTextResponse(f"# {model.full_name}\n\n{model.description}\n")

    async def examples(self, request: Request) -> Response:
        self._model(request)
        return JSONResponse(single_page([]))

    async def versions(self, request: Request) -> Response:
        model = self._model(request)
        return JSONResponse(single_page([self._version_json(model, version) for version in model.versions]))

    async def version(self, request: Request) -> Response:
        model = self._model(request)
        return JSONResponse(self._version_json(model, resolve_model_version(model, request.path_params["version"])))

    def _model(self, request: Request) -> ServedModel:
        return resolve_model(self._settings, request.path_params["owner"], request.path_params["name"]).model

    def _json(self, models: "tuple[ServedModel, ...] | list[ServedModel]") -> list[dict[str, Any]]:
        return [model_json(model, self._settings, self._service.created_at) for model in models]

    def _version_json(self, model: ServedModel, version: str) -> dict[str, Any]:
        return version_json(model, version, self._service.created_at)


def _slash_is_encoded(request: Request) -> bool:
    """Whether the path names the model in one segment, as in `/v1/models/owner%2Fname`."""
    return b"%2f" in request.scope.get("raw_path", b"").lower()


def _search_text(body: bytes) -> str:
    """The text of a search. JavaScript's client and version 2 of Python's send it as a JSON string."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise MalformedBody("the request body must be text in UTF-8") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, str) else text
