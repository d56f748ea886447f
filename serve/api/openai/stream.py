"""The events of a stream of images."""

import logging
from collections.abc import Sequence
from contextlib import aclosing

from serve.api.event_stream import Events
from serve.api.openai.errors import check_ended
from serve.api.openai.previews import Preview, Watch
from serve.api.openai.responses import ResponseWriter, error_event
from serve.errors import EngineFailed, public_error
from serve.predictions.prediction import Prediction

log = logging.getLogger(__name__)


async def image_events(predictions: Sequence[Prediction], writer: ResponseWriter, watch: Watch) -> Events:
    """The events of all predictions, one after the other, and an error event if one fails.

    The predictions run at the same time.
    """
    streams = [_PredictionEvents(prediction, writer) for prediction in predictions]
    try:
        for stream in streams:
            async for event in stream.events(watch):
                yield event
        check_ended([stream.prediction for stream in streams])
    except Exception as error:
        public = public_error(error)
        if public is None:
            log.exception("the stream of predictions %s failed", [each.id for each in predictions])
            public = EngineFailed("an internal error; the operator's log has its cause")
        yield error_event(public)


class _PredictionEvents:
    """The events of one prediction. `prediction` is its last state."""

    def __init__(self, prediction: Prediction, writer: ResponseWriter) -> None:
        self.prediction = prediction
        self._writer = writer
        self._previews: dict[int, int] = {}
        """The number of previews that were sent, by image."""
        self._completed: set[int] = set()

    async def events(self, watch: Watch) -> Events:
        limit = self._writer.request.parameters.partial_images
        async with aclosing(watch(self.prediction.id, limit)) as updates:
            async for update in updates:
                if isinstance(update, Preview):
                    if event := self._partial(update, limit):
                        yield event
                    continue
                self.prediction = update
                for output in update.outputs:
                    if output.index not in self._completed:
                        self._completed.add(output.index)
                        yield await self._writer.completed(update, output)

    def _partial(self, preview: Preview, limit: int) -> bytes | None:
        """The event for a preview; None if there were enough, or its image is finished."""
        number = self._previews.get(preview.index, 0)
        if number >= limit or preview.index in self._completed:
            return None
        self._previews[preview.index] = number + 1
        return self._writer.partial(self.prediction, number, preview.content)
