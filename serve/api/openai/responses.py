"""Responses and stream events of OpenAI's Images API."""

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from serve.api.event_stream import encode_event
from serve.api.openai.errors import openai_error
from serve.api.openai.request import ImageRequest
from serve.errors import EngineFailed, NotFound, ServiceError
from serve.media.output_store import OutputStore
from serve.predictions.prediction import Output, Prediction
from serve.settings import Settings

EventPrefix = Literal["image_generation", "image_edit"]
JPEG = {"jpg": "jpeg"}
"""OpenAI's names of formats, where they differ from ours."""


@dataclass(frozen=True, slots=True)
class ResponseWriter:
    """Writes the response to one request, or its events."""

    prefix: EventPrefix
    request: ImageRequest
    outputs: OutputStore
    settings: Settings
    now: Callable[[], float] = time.time

    async def response(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """The response with the images of predictions that have ended."""
        images = [await self._image(prediction, output) for prediction in predictions for output in prediction.outputs]
        return {
            "created": int(self.now()),
            "data": images,
            **self._properties(predictions[0]),
            "usage": usage(predictions[0], self.settings, len(images)),
        }

    async def completed(self, prediction: Prediction, output: Output) -> bytes:
        """The event for a finished image."""
        event: dict[str, Any] = {
            "type": f"{self.prefix}.completed",
            "b64_json": await self._base64(prediction, output),
            "created_at": int(self.now()),
            **self._properties(prediction),
            "usage": usage(prediction, self.settings, 1),
        }
        return encode_event(event["type"], event)

    def partial(self, prediction: Prediction, number: int, content: bytes) -> bytes:
        """The event for preview `number` of an image."""
        event: dict[str, Any] = {
            "type": f"{self.prefix}.partial_image",
            "b64_json": base64.b64encode(content).decode("ascii"),
            "created_at": int(self.now()),
            "partial_image_index": number,
            **self._properties(prediction),
        }
        return encode_event(event["type"], event)

    async def _image(self, prediction: Prediction, output: Output) -> dict[str, str]:
        if self.request.response_format == "url":
            with _still_stored():
                return {"url": await self.outputs.uri(prediction.id, output.name)}
        return {"b64_json": await self._base64(prediction, output)}

    async def _base64(self, prediction: Prediction, output: Output) -> str:
        with _still_stored():
            content, _ = await self.outputs.read(prediction.id, output.name)
        return base64.b64encode(content).decode("ascii")

    def _properties(self, prediction: Prediction) -> dict[str, str]:
        """What the images of a request have in common; `size` is the true one, after rounding."""
        plan = prediction.plan
        return {
            "background": "opaque",
            "output_format": JPEG.get(plan.output_format, plan.output_format),
            "quality": self.request.quality,
            "size": "x".join(map(str, plan.size or ())),
        }


@contextmanager
def _still_stored() -> Iterator[None]:
    """Converts `NotFound`, which would say that the path of the request does not exist."""
    try:
        yield
    except NotFound as error:
        raise EngineFailed("the image was removed before it could be sent; send the request again") from error


def error_event(error: ServiceError) -> bytes:
    return encode_event("error", {"type": "error", **openai_error(error)})


def usage(prediction: Prediction, settings: Settings, images: int) -> dict[str, Any]:
    """The tokens of the transformer: those of the padded prompt, of the input image, and of `images` images."""
    plan = prediction.plan
    model = settings.models[settings.pools[plan.pool].model]
    image_tokens = 1
    for side in plan.size or ():
        image_tokens *= -(-side // model.pixel_stride)
    details = {"text_tokens": model.max_sequence_length, "image_tokens": 0 if plan.strength is None else image_tokens}
    input_tokens, output_tokens = sum(details.values()), images * image_tokens
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": details,
        "output_tokens": output_tokens,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": output_tokens},
        "total_tokens": input_tokens + output_tokens,
    }
