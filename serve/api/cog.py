"""The face of a Cog container, for what was written against one: the envelope of its Python server.

A client that leaves a synchronous call cancels it. It serves the first of the served models. Knows no pool.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive

from serve.api.http_messages import check_body_keys, output_uris, parse_prefer, read_json_object, server_timing_header
from serve.api.openapi import COG_VERSION, openapi_document
from serve.errors import NotFound
from serve.inputs import Inputs
from serve.media.output_store import OutputStore
from serve.predictions.prediction import Prediction, rfc3339, timestamps
from serve.predictions.request import ServedVersion, resolve_version
from serve.predictions.service import PredictionService, State
from serve.settings import Settings

KEYS: dict[str, type] = {"input": dict}
NOT_SERVED = frozenset({"id", "created_at", "context", "output_file_prefix", "webhook", "webhook_events_filter"})
HEALTH: dict[State, str] = {"starting": "STARTING", "ready": "READY", "full": "BUSY", "closing": "DEFUNCT"}


def routes(desk: PredictionService, outputs: OutputStore, settings: Settings) -> list[Route]:
    face = _Face(desk, outputs, settings)
    table = (
        ("/", "GET", face.index),
        ("/health-check", "GET", face.health),
        ("/openapi.json", "GET", face.openapi),
        ("/predictions", "POST", face.predict),
        ("/predictions/{prediction_id}/cancel", "POST", face.cancel),
    )
    return [Route(path, endpoint, methods=[method]) for path, method, endpoint in table]


class _Face:
    def __init__(self, desk: PredictionService, outputs: OutputStore, settings: Settings) -> None:
        self._desk = desk
        self._outputs = outputs
        self._settings = settings
        self._served = resolve_version(settings, None)

    async def index(self, request: Request) -> Response:
        return JSONResponse(
            {
                "cog_version": COG_VERSION,
                "openapi_url": "/openapi.json",
                "healthcheck_url": "/health-check",
                "predictions_url": "/predictions",
                "predictions_cancel_url": "/predictions/{prediction_id}/cancel",
            }
        )

    async def health(self, request: Request) -> Response:
        opened_at = self._desk.opened_at
        setup = {
            "started_at": rfc3339(self._desk.created_at),
            "completed_at": rfc3339(opened_at) if opened_at else None,
            "status": "succeeded" if opened_at else "starting",
            "logs": "",
        }
        return JSONResponse({"status": HEALTH[self._desk.state], "setup": setup})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi_document(self._served.model))

    async def predict(self, request: Request) -> Response:
        body = await read_json_object(request, self._settings.max_body_bytes)
        check_body_keys(body, KEYS, NOT_SERVED)
        if parse_prefer(request.headers.getlist("prefer"), self._settings.max_wait_s).respond_async:
            prediction = await self._desk.create(body["input"], self._served)
            return await self._answer(prediction, 202)
        return await self._answer(await _unless_left(request.receive, self._run(body["input"])))

    async def cancel(self, request: Request) -> Response:
        try:
            await self._desk.cancel(request.path_params["prediction_id"])
        except NotFound:
            return JSONResponse({}, 404)
        return JSONResponse({})

    async def _run(self, inputs: dict[str, Any]) -> Prediction:
        async with self._desk.create_attached(inputs, self._served) as prediction:
            return await self._desk.wait(prediction.id)

    async def _answer(self, prediction: Prediction, status: int = 200) -> Response:
        body = await prediction_response(prediction, self._outputs, self._served)
        return JSONResponse(body, status, server_timing_header(prediction))


async def prediction_response(prediction: Prediction, outputs: OutputStore, served: ServedVersion) -> dict[str, Any]:
    """The prediction as Cog's Python server shows it: with every input, defaults included."""
    given = {key: value for key, value in prediction.inputs.items() if value is not None}
    return {
        "input": Inputs.model_validate(served.model.default_inputs | given).model_dump(),
        "output": await output_uris(prediction, outputs),
        "id": prediction.id,
        "version": prediction.version,
        **timestamps(prediction),
        "logs": prediction.logs,
        "error": prediction.error,
        "status": prediction.status,
        "metrics": prediction.metrics,
    }


async def _unless_left(receive: Receive, work: Coroutine[Any, Any, Prediction]) -> Prediction:
    """What `work` returns. Cancels it and raises `ClientDisconnect` when the client hangs up before."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
