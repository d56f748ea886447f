"""The Cog API: the HTTP interface of a Cog container, for the first of the served models."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.access.caller import OPERATOR
from serve.api.auth import caller_of
from serve.api.client_disconnect import cancel_on_disconnect
from serve.api.cog_options import KEYS, create_options
from serve.api.http_messages import (
    InvalidBody,
    check_body_keys,
    output_uris,
    prefers_async,
    read_json_object,
    server_timing_header,
)
from serve.api.openapi import COG_VERSION
from serve.api.openapi_replicate import service_document
from serve.errors import FieldError, NotFound, PredictionExists
from serve.inputs import Inputs, validate_inputs
from serve.media.output_store import OutputStore
from serve.predictions.create_options import CreateOptions
from serve.predictions.prediction import Prediction, rfc3339, timestamps
from serve.predictions.request import ServedVersion, resolve_version
from serve.predictions.service import PredictionService, ServiceState
from serve.settings import Settings

HEALTH: dict[ServiceState, str] = {
    "starting": "STARTING",
    "ready": "READY",
    "full": "BUSY",
    "failed": "SETUP_FAILED",
    "closing": "DEFUNCT",
}

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


def routes(
    service: PredictionService, outputs: OutputStore, settings: Settings, shut_down: Callable[[], Awaitable[None]]
) -> list[Route]:
    """`shut_down` stops the service; it is called if `cog.shutdown` is set."""
    api = CogApi(service, outputs, settings, shut_down)
    shutdown = [Route("/shutdown", api.shutdown, methods=["POST"])] if settings.cog.shutdown else []
    return [
        *shutdown,
        Route("/", api.index, methods=["GET"]),
        Route("/health-check", api.health, methods=["GET"]),
        Route("/openapi.json", api.openapi, methods=["GET"]),
        Route("/predictions", api.predict, methods=["POST"]),
        Route("/predictions/{prediction_id}", api.put, methods=["PUT"]),
        Route("/predictions/{prediction_id}/cancel", api.cancel, methods=["POST"]),
    ]


class CogApi:
    """Endpoints of the Cog API."""

    def __init__(
        self,
        service: PredictionService,
        outputs: OutputStore,
        settings: Settings,
        shut_down: Callable[[], Awaitable[None]],
    ) -> None:
        self._shut_down = shut_down
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
        opened_at, state = self._service.opened_at, await self._service.state()
        unfinished = "failed" if state == "failed" else "starting"
        setup = {
            "started_at": rfc3339(self._service.created_at),
            "completed_at": rfc3339(opened_at) if opened_at else None,
            "status": "succeeded" if opened_at else unfinished,
            "logs": "",
        }
        return JSONResponse({"status": HEALTH[state], "setup": setup})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(service_document(self._served.model))

    async def predict(self, request: Request) -> Response:
        """Runs a prediction to its end and cancels it if the client disconnects.

        With `Prefer: respond-async`, responds with 202 at once and the prediction survives a disconnect.
        """
        body = await self._read(request)
        options = create_options(body, caller_of(request), self._settings)
        if options.id is not None and await self._find(options) is not None:
            raise PredictionExists(options.id)
        return await self._create(request, body, options)

    async def put(self, request: Request) -> Response:
        """As `predict`, with an id of the client; sent again, it responds with the state of the first prediction."""
        body = await self._read(request)
        prediction_id = request.path_params["prediction_id"]
        if body.get("id") not in (None, prediction_id):
            message = "prediction ID must match the ID supplied in the URL"
            raise InvalidBody((FieldError("id", message, "value_error"),))
        options = create_options(body | {"id": prediction_id}, caller_of(request), self._settings)
        inputs = _with_defaults(self._served.rename_inputs(body["input"]), self._served)
        validate_inputs(inputs, self._settings.max_prompt_chars)
        existing = await self._find(options)
        if existing is None:
            try:
                return await self._create(request, body, options)
            except PredictionExists:  # Another request with this id was faster.
                existing = await self._find(options)
                if existing is None:
                    raise
        return await self._respond(existing, 200 if existing.ended else 202)

    async def shutdown(self, request: Request) -> Response:
        return JSONResponse({}, background=BackgroundTask(self._shut_down))

    async def _read(self, request: Request) -> dict[str, Any]:
        body = await read_json_object(request, self._settings.max_body_bytes)
        check_body_keys(body, KEYS, frozenset())
        return body

    async def _find(self, options: CreateOptions) -> Prediction | None:
        """The prediction with the id. Raises `PredictionExists` if it is of another caller."""
        assert options.id is not None
        try:
            prediction = await self._service.get(options.id, OPERATOR)
        except NotFound:
            return None
        if not options.caller.may_see(prediction.owner):
            raise PredictionExists(options.id)
        return prediction

    async def _create(self, request: Request, body: Mapping[str, Any], options: CreateOptions) -> Response:
        inputs = self._served.rename_inputs(body["input"])
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
        if self._settings.cog.envelope == "short":
            body = _short_envelope(body)
        return JSONResponse(body, status, server_timing_header(prediction))


async def prediction_response(
    prediction: Prediction, outputs: OutputStore, served: ServedVersion, with_unfinished: bool = False
) -> dict[str, Any]:
    """The prediction as Cog's `PredictionResponse`; `input` has every input, defaults included.

    `with_unfinished` is as for `output_uris`.
    """
    inputs = _with_defaults(prediction.inputs, served)
    return {
        "input": {} if prediction.data_removed else Inputs.model_validate(inputs).model_dump(),
        "output": await output_uris(prediction, outputs, with_unfinished),
        "id": prediction.id,
        "version": prediction.version,
        **timestamps(prediction),
        "logs": prediction.logs,
        "error": prediction.error,
        "status": prediction.status,
        "metrics": prediction.metrics,
    }


def _with_defaults(inputs: Mapping[str, Any], served: ServedVersion) -> dict[str, Any]:
    """The inputs that are not null, and the defaults of the served model."""
    return served.model.default_inputs | {key: value for key, value in inputs.items() if value is not None}


def _short_envelope(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Cog 0.17 and later."""
    if body["completed_at"] is None:
        return {"id": body["id"], "status": body["status"]}
    error = {} if body["error"] is None else {"error": body["error"]}
    return {name: body[name] for name in ("id", "output", "logs", "status", "metrics")} | error
