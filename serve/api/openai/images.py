"""The endpoints of OpenAI's Images API."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.access.caller import Caller
from serve.api.auth import caller_of
from serve.api.client_disconnect import cancel_on_disconnect
from serve.api.event_stream import Events, EventStream
from serve.api.http_messages import read_json_object
from serve.api.openai.edit_form import EditForm, read_edit_form
from serve.api.openai.errors import check_ended
from serve.api.openai.previews import PreviewWatcher
from serve.api.openai.request import ImageRequest, parse_request
from serve.api.openai.responses import ResponseWriter
from serve.api.openai.stream import image_events
from serve.errors import FieldError, InvalidImage, InvalidInput
from serve.media.edit_files import convert_edit
from serve.media.output_store import OutputStore
from serve.predictions.create_options import CreateOptions, PreviewOptions
from serve.predictions.prediction import Prediction
from serve.predictions.service import PredictionService
from serve.settings import Settings

CONCURRENT_CONVERSIONS = 2
"""An image of 50 megapixels takes 150 MB while it is converted."""

PredictionInputs = Sequence[Mapping[str, Any]]


def routes(service: PredictionService, outputs: OutputStore, settings: Settings) -> list[Route]:
    api = ImagesApi(service, outputs, settings)
    return [
        Route("/v1/images/generations", api.generate, methods=["POST"]),
        Route("/v1/images/edits", api.edit, methods=["POST"]),
    ]


class ImagesApi:
    """A prediction is cancelled if its client disconnects, as there is no endpoint to collect its images later."""

    def __init__(self, service: PredictionService, outputs: OutputStore, settings: Settings) -> None:
        self._service = service
        self._outputs = outputs
        self._settings = settings
        self._watch = PreviewWatcher(service)
        self._converters = asyncio.Semaphore(CONCURRENT_CONVERSIONS)

    async def generate(self, request: Request) -> Response:
        body = await read_json_object(request, self._settings.max_body_bytes)
        image_request = parse_request(body, self._settings)
        writer = ResponseWriter("image_generation", image_request, self._outputs, self._settings)
        return await self._respond(request, writer, image_request.prediction_inputs())

    async def edit(self, request: Request) -> Response:
        image_request, inputs = await self._read_edit(request)
        writer = ResponseWriter("image_edit", image_request, self._outputs, self._settings)
        return await self._respond(request, writer, inputs)

    async def _read_edit(self, request: Request) -> tuple[ImageRequest, PredictionInputs]:
        """The request and the inputs of its predictions. The uploaded files are freed."""
        form = await read_edit_form(request, self._settings.max_body_bytes, self._settings.files.upload_timeout_s)
        image_request = parse_request(form.fields, self._settings)
        image, mask = await self._convert(form, image_request)
        return image_request, image_request.prediction_inputs(image, mask)

    async def _respond(self, request: Request, writer: ResponseWriter, inputs: PredictionInputs) -> Response:
        if writer.request.parameters.stream:
            return EventStream(self._open_stream(writer, inputs, caller_of(request)))
        return JSONResponse(await cancel_on_disconnect(request.receive, self._run(writer, inputs, caller_of(request))))

    async def _convert(self, form: EditForm, image_request: ImageRequest) -> tuple[str, str | None]:
        """The image and the mask as `data:` URIs. Raises `InvalidInput`."""
        limit = self._settings.max_image_megapixels
        async with self._converters:
            try:
                return await asyncio.to_thread(_convert_to_uris, form, image_request, limit)
            except InvalidImage as error:
                raise InvalidInput((FieldError(error.field, error.why),)) from error

    async def _run(self, writer: ResponseWriter, inputs: PredictionInputs, caller: Caller) -> dict[str, Any]:
        """The body of the response. Raises `ImageFailed` if a prediction fails."""
        async with self._create(writer.request, inputs, caller) as predictions:
            ended = [await self._service.wait(prediction.id) for prediction in predictions]
        check_ended(ended)
        return await writer.response(ended)

    @asynccontextmanager
    async def _create(
        self, image_request: ImageRequest, inputs: PredictionInputs, caller: Caller
    ) -> AsyncGenerator[list[Prediction], None]:
        """Creates the predictions, and cancels those that have not ended when the block is left."""
        parameters = image_request.parameters
        previews = PreviewOptions(parameters.partial_images if parameters.stream else 0)
        options = CreateOptions(caller, previews=previews)
        async with AsyncExitStack() as stack:
            try:
                predictions = [
                    await stack.enter_async_context(self._service.create_attached(each, image_request.served, options))
                    for each in inputs
                ]
            except InvalidInput as error:
                raise image_request.renamed(error) from None
            yield predictions

    @asynccontextmanager
    async def _open_stream(
        self, writer: ResponseWriter, inputs: PredictionInputs, caller: Caller
    ) -> AsyncGenerator[Events, None]:
        async with self._create(writer.request, inputs, caller) as predictions:
            yield image_events(predictions, writer, self._watch)


def _convert_to_uris(form: EditForm, image_request: ImageRequest, max_megapixels: float) -> tuple[str, str | None]:
    image, mask = convert_edit(form.image, form.mask, image_request.size, max_megapixels)
    return _data_uri(image), None if mask is None else _data_uri(mask)


def _data_uri(content: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode('ascii')}"
