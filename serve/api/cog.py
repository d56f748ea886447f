"""The Cog API: the HTTP interface of a Cog container, for the first of the served models."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.api.auth import caller_of
from serve.api.client_disconnect import cancel_on_disconnect
from serve.api.http_messages import check_body_keys, output_uris, prefers_async, read_json_object, server_timing_header
from serve.api.openapi import COG_VERSION
from serve.api.openapi_replicate import service_document
from serve.api.webhook_fields import WEBHOOK_KEYS, parse_webhook
from serve.errors import NotFound
from serve.inputs import Inputs
from serve.media.output_store import OutputStore
from serve.predictions.create_options import CreateOptions
from serve.predictions.prediction import Prediction, rfc3339, timestamps
from serve.predictions.request import ServedVersion, resolve_version
from serve.predictions.service import PredictionService, ServiceState
from serve.settings import Settings

KEYS: dict[str, type] = {"input": dict} | WEBHOOK_KEYS
UNSUPPORTED_KEYS = frozenset({"id", "created_at", "context", "output_file_prefix"})
HEALTH: dict[ServiceState, str] = {"starting": "STARTING", "ready": "READY", "full": "BUSY", "closing": "DEFUNCT"}

INDEX = {
    "docs_url": ("GET", "/docs"),
    "openapi_url": ("GET", "/openapi.json"),
    "shutdown_url": ("POST", "/shutdown"),
    "healthcheck_url": ("GET", "/health-check"),
    "predictions_url": ("POST", "/predictions"),
    "predictions_idempotent_url": ("PUT", "/predictions/{prediction_id}"),
    "predictions_cancel_url": ("POST", "/predictions/{prediction_id}/cancel"),
}
"""The endpoints that Cog's discovery can name, with method and path."""


def routes(service: PredictionService, outputs: OutputStore, settings: Settings) -> list[Route]:
    api = CogApi(service, outputs, settings)
    return [
        Route("/", api.index, methods=["GET"]),
        Route("/health-check", api.health, methods=["GET"]),
        Route("/openapi.json", api.openapi, methods=["GET"]),
        Route("/predictions", api.predict, methods=["POST"]),
        Route("/predictions/{prediction_id}/cancel", api.cancel, methods=["POST"]),
    ]


class CogApi:
    """Endpoints of the Cog API."""

    def __init__(self, service: PredictionService, outputs: OutputStore, settings: Settings) -> None:
        self._service = service
        self._outputs = outputs
        self._settings = settings
        self._served = resolve_version(settings, None)

    async def index(self, request: Request) -> Response:
        """Cog's discovery: the paths of the endpoints that exist."""
        served = {
            (method, route.path)
            for route in request.app.routes
            if isinstance(route, Route)
            for method in route.methods or ()
        }
        urls = {name: path for name, (method, path) in INDEX.items() if (method, path) in served}
        return JSONResponse({"cog_version": COG_VERSION} | urls)

    async def health(self, request: Request) -> Response:
        opened_at = self._service.opened_at
        setup = {
            "started_at": rfc3339(self._service.created_at),
            "completed_at": rfc3339(opened_at) if opened_at else None,
            "status": "succeeded" if opened_at else "starting",
            "logs": "",
        }
        return JSONResponse({"status": HEALTH[await self._service.state()], "setup": setup})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(service_document(self._served.model))

    async def predict(self, request: Request) -> Response:
        """Runs a prediction to its end and cancels it if the client disconnects.

        With `Prefer: respond-async`, responds with 202 at once and the prediction survives a disconnect.
        """
        body = await read_json_object(request, self._settings.max_body_bytes)
        check_body_keys(body, KEYS, UNSUPPORTED_KEYS)
        inputs = self._served.rename_inputs(body["input"])
        options = CreateOptions(caller_of(request), webhook=parse_webhook(body, "cog"))
        if prefers_async(request.headers.getlist("prefer")):
            return await self._respond(await self._service.create(inputs, self._served, options), 202)
        running = self._run(inputs, options)
        return await self._respond(await cancel_on_disconnect(request.receive, running))

    async def cancel(self, request: Request) -> Response:
        try:
            await self._service.cancel(request.path_params["prediction_id"], caller_of(request))
        except NotFound:
            return JSONResponse({}, 404)
        return JSONResponse({})

    async def _run(self, inputs: dict[str, Any], options: CreateOptions) -> Prediction:
        async with self._service.create_attached(inputs, self._served, options) as prediction:
            return await self._service.wait(prediction.id)

    async def _respond(self, prediction: Prediction, status: int = 200) -> Response:
        body = await prediction_response(prediction, self._outputs, self._served)
        return JSONResponse(body, status, server_timing_header(prediction))


async def prediction_response(
    prediction: Prediction, outputs: OutputStore, served: ServedVersion, with_unfinished: bool = False
) -> dict[str, Any]:
    """The prediction as Cog's `PredictionResponse`; `input` has every input, defaults included.

    `with_unfinished` is as for `output_uris`.
    """
    given = {key: value for key, value in prediction.inputs.items() if value is not None}
    inputs = {} if prediction.data_removed else Inputs.model_validate(served.model.default_inputs | given).model_dump()
    return {
        "input": inputs,
        "output": await output_uris(prediction, outputs, with_unfinished),
        "id": prediction.id,
        "version": prediction.version,
        **timestamps(prediction),
        "logs": prediction.logs,
        "error": prediction.error,
        "status": prediction.status,
        "metrics": prediction.metrics,
    }
