"""The `/v1` face: predictions as Replicate's API has them, for its official clients.

A prediction that was accepted here lives on when its client hangs up. Knows no pool, no picture and no token.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.api.http_messages import check_body_keys, output_uris, parse_prefer, read_json_object, server_timing_header
from serve.api.openapi import COG_VERSION, openapi_document
from serve.errors import NotFound
from serve.media.output_store import OutputStore
from serve.predictions.prediction import Prediction, rfc3339, timestamps
from serve.predictions.request import ServedVersion, resolve_model, resolve_version
from serve.predictions.service import PredictionService
from serve.settings import Settings

KEYS: dict[str, type] = {"input": dict, "version": str, "stream": bool}
"""`stream` asks for a stream of text, which a model of pictures has not: then an answer has no `urls.stream`."""
MODEL_KEYS: dict[str, type] = {"input": dict, "stream": bool}
PAGE_LENGTH = 100
NOT_SERVED = frozenset({"webhook", "webhook_completed", "webhook_events_filter"})


def routes(desk: PredictionService, outputs: OutputStore, settings: Settings) -> list[Route]:
    face = _Face(desk, outputs, settings)
    table = (
        ("/v1/predictions", "POST", face.create),
        ("/v1/predictions", "GET", face.page),
        ("/v1/predictions/{prediction_id}", "GET", face.get),
        ("/v1/predictions/{prediction_id}/cancel", "POST", face.cancel),
        ("/v1/models/{owner}/{name}/predictions", "POST", face.create_for_model),
        ("/v1/models/{owner}/{name}/versions/{version}", "GET", face.version),
    )
    return [Route(path, endpoint, methods=[method]) for path, method, endpoint in table]


class _Face:
    def __init__(self, desk: PredictionService, outputs: OutputStore, settings: Settings) -> None:
        self._desk = desk
        self._outputs = outputs
        self._settings = settings

    async def create(self, request: Request) -> Response:
        body = await read_json_object(request, self._settings.max_body_bytes)
        check_body_keys(body, KEYS, NOT_SERVED)
        return await self._created(request, body["input"], resolve_version(self._settings, body.get("version")))

    async def create_for_model(self, request: Request) -> Response:
        served = resolve_model(self._settings, request.path_params["owner"], request.path_params["name"])
        body = await read_json_object(request, self._settings.max_body_bytes)
        check_body_keys(body, MODEL_KEYS, NOT_SERVED)
        return await self._created(request, body["input"], served)

    async def page(self, request: Request) -> Response:
        """The newest first; pictures are left out where they would be `data:` URIs of a megabyte each."""
        page = await self._desk.page(request.query_params.get("cursor"), PAGE_LENGTH + 1)
        shown, more = page[:PAGE_LENGTH], page[PAGE_LENGTH:]
        here = self._settings.outputs.public_url.rstrip("/")
        return JSONResponse(
            {
                "previous": None,
                "next": f"{here}/v1/predictions?cursor={shown[-1].id}" if more else None,
                "results": [await self._listed(each) for each in shown],
            }
        )

    async def _listed(self, prediction: Prediction) -> dict[str, Any]:
        if self._settings.outputs.as_data:
            return _body(prediction, None, self._settings) | {"data_removed": False}
        return await prediction_json(prediction, self._outputs, self._settings)

    async def get(self, request: Request) -> Response:
        return await self._answer(await self._desk.get(request.path_params["prediction_id"]))

    async def cancel(self, request: Request) -> Response:
        return await self._answer(await self._desk.cancel(request.path_params["prediction_id"]))

    async def version(self, request: Request) -> Response:
        owner, name, version = (request.path_params[key] for key in ("owner", "name", "version"))
        model = resolve_model(self._settings, owner, name).model
        if version not in model.versions:
            raise NotFound(f"{model.full_name} has no version {version[:100]!r} here")
        return JSONResponse(
            {
                "id": version,
                "created_at": rfc3339(self._desk.created_at),
                "cog_version": COG_VERSION,
                "openapi_schema": openapi_document(model),
            }
        )

    async def _created(self, request: Request, inputs: dict[str, Any], served: ServedVersion) -> Response:
        preference = parse_prefer(request.headers.getlist("prefer"), self._settings.max_wait_s)
        prediction = await self._desk.create(inputs, served)
        if preference.wait_s is not None:
            prediction = await self._desk.wait(prediction.id, preference.wait_s)
        response = await self._answer(prediction if prediction.ended else _unstarted(prediction), 201)
        if preference.preference_applied:
            response.headers["Preference-Applied"] = preference.preference_applied
        return response

    async def _answer(self, prediction: Prediction, status: int = 200) -> Response:
        body = await prediction_json(prediction, self._outputs, self._settings)
        return JSONResponse(body, status, server_timing_header(prediction))


async def prediction_json(prediction: Prediction, outputs: OutputStore, settings: Settings) -> dict[str, Any]:
    """The prediction as the API shows it."""
    return _body(prediction, await output_uris(prediction, outputs), settings)


def _body(prediction: Prediction, pictures: list[str] | None, settings: Settings) -> dict[str, Any]:
    here = f"{settings.outputs.public_url.rstrip('/')}/v1/predictions/{prediction.id}"
    return {
        "id": prediction.id,
        "model": prediction.model,
        "version": prediction.version,
        "status": prediction.status,
        "input": prediction.inputs,
        "output": pictures,
        "error": prediction.error,
        "logs": prediction.logs,
        "metrics": prediction.metrics,
        "data_removed": prediction.status == "succeeded" and pictures is None,
        **timestamps(prediction),
        "urls": {"get": here, "cancel": f"{here}/cancel", "web": here},
    }


def _unstarted(prediction: Prediction) -> Prediction:
    """A prediction that is not over, as clients expect it from the call that made it.

    They take any other status for a final one, and would not ask again.
    """
    return prediction.model_copy(update={"status": "starting", "started_at": None})
