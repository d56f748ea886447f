"""The predictions endpoints of the Replicate API, for Replicate's official clients."""

from contextlib import aclosing
from dataclasses import replace
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.access.caller import OPERATOR, Caller
from serve.api.auth import caller_of
from serve.api.creation_headers import parse_create_options
from serve.api.event_stream import EventStream
from serve.api.http_messages import (
    PAGE_SIZE,
    InvalidQuery,
    check_body_keys,
    output_uris,
    parse_prefer,
    read_json_object,
    server_timing_header,
)
from serve.api.pages import both_ways_page, parse_page_query
from serve.api.prediction_stream import Position, prediction_events
from serve.api.webhook_fields import WEBHOOK_KEYS, parse_webhook
from serve.errors import FieldError
from serve.media.links import PREFIX, LinkSigner
from serve.media.output_store import OutputStore
from serve.predictions.create_options import NO_PREVIEWS, PreviewOptions
from serve.predictions.prediction import Prediction, rfc3339, timestamps
from serve.predictions.request import ServedVersion, resolve_deployment, resolve_model, resolve_version
from serve.predictions.service import PredictionService
from serve.settings import Settings

KEYS: dict[str, type] = {"input": dict, "version": str, "stream": bool} | WEBHOOK_KEYS
"""Every prediction has `urls.stream`; with `stream`, its events of progress have previews."""
MODEL_KEYS: dict[str, type] = {"input": dict, "stream": bool} | WEBHOOK_KEYS
STREAM_PREVIEWS = PreviewOptions(max_per_image=8, steps_between=3)
FLAGS = {"true": True, "false": False}
UNSUPPORTED_KEYS = frozenset({"webhook_completed"})


def routes(service: PredictionService, outputs: OutputStore, links: LinkSigner, settings: Settings) -> list[Route]:
    api = ReplicateApi(service, outputs, links, settings)
    return [
        Route("/v1/predictions", api.create, methods=["POST"]),
        Route("/v1/predictions", api.page, methods=["GET"]),
        Route("/v1/predictions/{prediction_id}", api.get, methods=["GET"]),
        Route("/v1/predictions/{prediction_id}/cancel", api.cancel, methods=["POST"]),
        Route("/v1/predictions/{prediction_id}/stream", api.stream, methods=["GET"]),
        Route(f"{PREFIX}{{ticket}}/v1/predictions/{{prediction_id}}/stream", api.linked_stream, methods=["GET"]),
        Route("/v1/models/{owner}/{name}/predictions", api.create_for_model, methods=["POST"]),
        Route("/v1/deployments/{owner}/{name}/predictions", api.create_for_deployment, methods=["POST"]),
    ]


class ReplicateApi:
    """Endpoints for predictions. An accepted prediction keeps running if its client disconnects."""

    def __init__(self, service: PredictionService, outputs: OutputStore, links: LinkSigner, settings: Settings) -> None:
        self._service = service
        self._outputs = outputs
        self._links = links
        self._settings = settings

    async def create(self, request: Request) -> Response:
        body = await read_json_object(request, self._settings.max_body_bytes)
        check_body_keys(body, KEYS, UNSUPPORTED_KEYS)
        return await self._create(request, body, resolve_version(self._settings, body.get("version")))

    async def create_for_model(self, request: Request) -> Response:
        served = resolve_model(self._settings, request.path_params["owner"], request.path_params["name"])
        return await self._create_for(request, served)

    async def create_for_deployment(self, request: Request) -> Response:
        served = resolve_deployment(self._settings, request.path_params["owner"], request.path_params["name"])
        return await self._create_for(request, served)

    async def page(self, request: Request) -> Response:
        """Predictions, newest first."""
        query = parse_page_query(request.query_params, PAGE_SIZE + 1)
        found = await self._service.page(query, caller_of(request))
        arguments = (self._outputs, self._links, self._settings)
        results = [await listed_prediction_json(prediction, *arguments) for prediction in found]
        body = both_ways_page(results, query, f"{self._settings.outputs.base_url}/v1/predictions")
        # A page has about 100 kB, which takes `json` six times as long.
        return Response(to_json(body), media_type="application/json")

    async def get(self, request: Request) -> Response:
        return await self._respond(await self._service.get(request.path_params["prediction_id"], caller_of(request)))

    async def cancel(self, request: Request) -> Response:
        return await self._respond(await self._service.cancel(request.path_params["prediction_id"], caller_of(request)))

    async def stream(self, request: Request) -> Response:
        return await self._stream(request, caller_of(request))

    async def linked_stream(self, request: Request) -> Response:
        await self._links.check(_stream_path(request.path_params["prediction_id"]), request.path_params["ticket"])
        return await self._stream(request, OPERATOR)

    async def _stream(self, request: Request, caller: Caller) -> Response:
        """The events of a prediction, or 204 if the client has them all, so that browsers do not reconnect again."""
        prediction = await self._service.get(request.path_params["prediction_id"], caller)
        last_id = request.headers.get("last-event-id")
        position = Position() if last_id is None else Position.parse(last_id, prediction)
        if position.ended:
            return Response(status_code=204)
        read_previews = self._service.previews if _parse_flag(request, "progress") else None
        updates = self._service.watch(prediction.id)
        return EventStream(aclosing(prediction_events(updates, self._outputs, position, read_previews)))

    async def _create_for(self, request: Request, served: ServedVersion) -> Response:
        body = await read_json_object(request, self._settings.max_body_bytes)
        check_body_keys(body, MODEL_KEYS, UNSUPPORTED_KEYS)
        return await self._create(request, body, served)

    async def _create(self, request: Request, body: dict[str, Any], served: ServedVersion) -> Response:
        webhook = parse_webhook(body, "replicate")
        preference = parse_prefer(request.headers.getlist("prefer"), self._settings.max_wait_s)
        previews = STREAM_PREVIEWS if body.get("stream") else NO_PREVIEWS
        headers = parse_create_options(request, body)
        options = replace(headers, caller=caller_of(request), webhook=webhook, previews=previews)
        prediction = await self._service.create(served.rename_inputs(body["input"]), served, options)
        if preference.wait_s is not None:
            prediction = await self._service.wait(prediction.id, preference.wait_s)
        response = await self._respond(prediction if prediction.ended else _as_starting(prediction), 201)
        if preference.applied:
            response.headers["Preference-Applied"] = preference.applied
        return response

    async def _respond(self, prediction: Prediction, status: int = 200) -> Response:
        body = await self._json(prediction)
        return JSONResponse(body, status, server_timing_header(prediction))

    async def _json(self, prediction: Prediction) -> dict[str, Any]:
        return await prediction_json(prediction, self._outputs, self._links, self._settings)


def _parse_flag(request: Request, name: str) -> bool:
    """A query parameter, which is false without it. Raises `InvalidQuery`."""
    value = request.query_params.get(name, "false")
    if value not in FLAGS:
        raise InvalidQuery((FieldError(name, f"Input should be {' or '.join(FLAGS)}", "bool_parsing"),))
    return FLAGS[value]


async def prediction_json(
    prediction: Prediction,
    outputs: OutputStore,
    links: LinkSigner,
    settings: Settings,
    with_unfinished: bool = False,
) -> dict[str, Any]:
    """The prediction object of the Replicate API; `with_unfinished` as for `output_uris`."""
    uris = await output_uris(prediction, outputs, with_unfinished)
    return await _prediction_body(prediction, uris, links, settings)


async def listed_prediction_json(
    prediction: Prediction, outputs: OutputStore, links: LinkSigner, settings: Settings
) -> dict[str, Any]:
    """The prediction in a list, without images that would be `data:` URIs of about a megabyte each."""
    if settings.outputs.uses_data_uris:
        body = await _prediction_body(prediction, None, links, settings)
        return body | {"data_removed": prediction.data_removed}
    return await prediction_json(prediction, outputs, links, settings)


async def _prediction_body(
    prediction: Prediction, uris: list[str] | None, links: LinkSigner, settings: Settings
) -> dict[str, Any]:
    url = f"{settings.outputs.base_url}/v1/predictions/{prediction.id}"
    stream_path = _stream_path(prediction.id)
    # Replicate's JavaScript client sends no token with the request for a stream.
    stream_url = f"{settings.outputs.base_url}{PREFIX}{await links.ticket(stream_path)}/{stream_path}"
    return {
        "id": prediction.id,
        "model": prediction.model,
        "version": prediction.version,
        "status": prediction.status,
        "input": prediction.inputs,
        "output": uris,
        "error": prediction.error,
        "logs": prediction.logs,
        "metrics": prediction.metrics,
        "data_removed": prediction.data_removed or (prediction.status == "succeeded" and uris is None),
        **timestamps(prediction),
        **({} if prediction.deadline is None else {"deadline": rfc3339(prediction.deadline)}),
        "urls": {"get": url, "cancel": f"{url}/cancel", "stream": stream_url, "web": url},
    }


def _stream_path(prediction_id: str) -> str:
    """The path that a link to the stream of a prediction signs."""
    return f"v1/predictions/{prediction_id}/stream"


def _as_starting(prediction: Prediction) -> Prediction:
    """An unfinished prediction for the response to its creation.

    Replicate's clients poll only if this status is `starting`; they take any other one as final.
    """
    return prediction.model_copy(update={"status": "starting", "started_at": None})
