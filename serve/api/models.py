"""The models and account endpoints of the Replicate API: the served models, with their versions and schemas."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.api.openapi import COG_VERSION, openapi_document
from serve.errors import NotFound
from serve.predictions.prediction import rfc3339
from serve.predictions.request import resolve_model
from serve.predictions.service import PredictionService
from serve.settings import ServedModel, Settings

ACCOUNT = {"type": "organization", "username": "flux-serve", "name": "flux-serve", "github_url": None}
"""The service has no accounts; clients read this object to check their token."""


def routes(service: PredictionService, settings: Settings) -> list[Route]:
    api = ModelsApi(service, settings)
    return [
        Route("/v1/account", api.account, methods=["GET"]),
        Route("/v1/models", api.page, methods=["GET"]),
        Route("/v1/models/{owner}/{name}", api.get, methods=["GET"]),
        Route("/v1/models/{owner}/{name}/versions", api.versions, methods=["GET"]),
        Route("/v1/models/{owner}/{name}/versions/{version}", api.version, methods=["GET"]),
    ]


class ModelsApi:
    def __init__(self, service: PredictionService, settings: Settings) -> None:
        self._service = service
        self._settings = settings

    async def account(self, request: Request) -> Response:
        return JSONResponse(ACCOUNT)

    async def page(self, request: Request) -> Response:
        return JSONResponse(_page([self._model_json(model) for model in self._settings.served_models]))

    async def get(self, request: Request) -> Response:
        return JSONResponse(self._model_json(self._model(request)))

    async def versions(self, request: Request) -> Response:
        model = self._model(request)
        return JSONResponse(_page([self._version_json(model, version) for version in model.versions]))

    async def version(self, request: Request) -> Response:
        model, version = self._model(request), request.path_params["version"]
        if version not in model.versions:
            raise NotFound(f"{model.full_name} has no version {version[:100]!r}")
        return JSONResponse(self._version_json(model, version))

    def _model(self, request: Request) -> ServedModel:
        return resolve_model(self._settings, request.path_params["owner"], request.path_params["name"]).model

    def _model_json(self, model: ServedModel) -> dict[str, Any]:
        """Every field that the official clients require; there are no web pages, licences or counts of runs."""
        return {
            "url": f"{self._settings.outputs.base_url}/v1/models/{model.full_name}",
            "owner": model.owner,
            "name": model.name,
            "description": None,
            "visibility": "public",
            "github_url": None,
            "paper_url": None,
            "license_url": None,
            "run_count": 0,
            "cover_image_url": None,
            "default_example": None,
            "latest_version": self._version_json(model, model.versions[0]),
        }

    def _version_json(self, model: ServedModel, version: str) -> dict[str, Any]:
        return {
            "id": version,
            "created_at": rfc3339(self._service.created_at),
            "cog_version": COG_VERSION,
            "openapi_schema": openapi_document(model),
        }


def _page(results: list[dict[str, Any]]) -> dict[str, Any]:
    """All results on one page: the settings list few models."""
    return {"previous": None, "next": None, "results": results}
