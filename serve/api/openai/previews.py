"""Previews of images that are being generated, as files in the format and size of the images."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from serve.generation_plan import GenerationPlan
from serve.media.image_codec import enlarge_image
from serve.predictions.prediction import Prediction
from serve.predictions.service import PredictionService

CONCURRENT_ENCODINGS = 2


@dataclass(frozen=True, slots=True)
class Preview:
    """Image `index` of a prediction after `step` steps, as a file in the planned format."""

    index: int
    step: int
    content: bytes


Updates = AsyncGenerator[Prediction | Preview, None]
"""The prediction now and after every change until it has ended, with its previews in between."""
Watch = Callable[[str, int], Updates]
"""The updates of a prediction by its id, with at most that many previews of each image."""


class PreviewWatcher:
    """Its instances are a `Watch`."""

    def __init__(self, service: PredictionService) -> None:
        self._service = service
        self._encodings = asyncio.Semaphore(CONCURRENT_ENCODINGS)

    async def __call__(self, prediction_id: str, limit: int) -> Updates:
        steps: dict[int, int] = {}
        async with aclosing(self._service.watch(prediction_id)) as states:
            async for prediction in states:
                if limit and any(each.preview_step > steps.get(each.index, 0) for each in prediction.progress):
                    async for preview in self._new_previews(prediction, steps):
                        yield preview
                yield prediction

    async def _new_previews(self, prediction: Prediction, steps: dict[int, int]) -> AsyncGenerator[Preview, None]:
        """The previews of later steps than `steps` has for their images; it is updated."""
        for index, (step, content) in sorted((await self._service.previews(prediction.id)).items()):
            if step > steps.get(index, 0):
                steps[index] = step
                async with self._encodings:
                    enlarged = await asyncio.to_thread(_enlarge, content, prediction.plan)
                yield Preview(index, step, enlarged)


def _enlarge(content: bytes, plan: GenerationPlan) -> bytes:
    assert plan.size is not None
    return enlarge_image(content, plan.size, plan.output_format, plan.output_quality)
