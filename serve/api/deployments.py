"""The deployments and hardware endpoints of the Replicate API. Their predictions are in `serve.api.replicate`."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.api.model_objects import ACCOUNT, refuse_change
from serve.api.pages import single_page
from serve.predictions.prediction import rfc3339
from serve.predictions.request import default_pool, find_deployment, resolve_deployment
from serve.predictions.service import PredictionService
from serve.settings import DeploymentSettings, Settings

DEPLOYMENT = "/v1/deployments/{owner}/{name}"


def routes(service: PredictionService, settings: Settings) -> list[Route]:
    api = DeploymentsApi(service, settings)
    return [
        Route("/v1/deployments", api.page, methods=["GET"]),
        Route("/v1/deployments", refuse_change, methods=["POST"]),
        Route(DEPLOYMENT, api.get, methods=["GET"]),
        Route(DEPLOYMENT, refuse_change, methods=["PATCH", "DELETE"]),
        Route("/v1/hardware", api.hardware, methods=["GET"]),
    ]


class DeploymentsApi:
    def __init__(self, service: PredictionService, settings: Settings) -> None:
        self._service = service
        self._settings = settings

    async def page(self, request: Request) -> Response:
        return JSONResponse(single_page([self._json(deployment) for deployment in self._settings.deployments]))

    async def get(self, request: Request) -> Response:
        owner, name = request.path_params["owner"], request.path_params["name"]
        return JSONResponse(self._json(find_deployment(self._settings, owner, name)))

    async def hardware(self, request: Request) -> Response:
        """The pools."""
        pools = self._settings.pools.items()
        return JSONResponse(
            [{"sku": name, "name": f"{pool.model} in {pool.precision} on {pool.device}"} for name, pool in pools]
        )

    def _json(self, deployment: DeploymentSettings) -> dict[str, Any]:
        """Replicate's object. The hardware is the pool that the model's default inputs choose, with its limits."""
        served = resolve_deployment(self._settings, deployment.owner, deployment.name)
        pool = default_pool(served, self._settings)
        scaling = self._settings.pools[pool].scaling
        return {
            "owner": deployment.owner,
            "name": deployment.name,
            "current_release": {
                "number": 1,
                "model": served.model.full_name,
                "version": served.version,
                "created_at": rfc3339(self._service.created_at),
                "created_by": ACCOUNT,
                "configuration": {
                    "hardware": pool,
                    "min_instances": scaling.min_replicas,
                    "max_instances": scaling.max_replicas,
                },
            },
        }
