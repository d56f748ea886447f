"""The server-sent events of a prediction, as Replicate's `urls.stream` gives them."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Self

from serve.api.event_stream import Events, encode_event, encode_text_event
from serve.api.http_messages import InvalidHeader
from serve.errors import FieldError, NotFound
from serve.inputs import shorten_name
from serve.media.output_store import OutputStore
from serve.predictions.prediction import Output, Prediction, Progress

DONE: dict[str, dict[str, str]] = {"succeeded": {}, "canceled": {"reason": "canceled"}, "failed": {"reason": "error"}}
"""The data of the event `done`, by status."""
_EVENT_ID = re.compile(r"([0-9]{1,15}):([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Position:
    """What a client has received. The id of an event has all of it, so that any process can resume the stream."""

    log_chars: int = 0
    outputs: frozenset[int] = frozenset()
    """The indices of images."""
    ended: bool = False

    def event_id(self, prediction: Prediction) -> str:
        """`timestamp:sequence`, as Replicate's ids; the sequence increases with every event that moves the position.

        Its lowest bit says whether the stream has ended, and the next ones, which images the client has.
        """
        images = sum(1 << index for index in self.outputs)
        sequence = (self.log_chars << len(prediction.plan.seeds) | images) << 1 | self.ended
        return f"{_timestamp(prediction)}:{sequence}"

    @classmethod
    def parse(cls, event_id: str, prediction: Prediction) -> Self:
        """The position after an event. Raises `InvalidHeader` if the prediction has no event with this id."""
        match = _EVENT_ID.fullmatch(event_id)
        if match is None or int(match[1]) != _timestamp(prediction):
            message = (
                f"{shorten_name(event_id)!r} is not the id of an event of this prediction; leave it out to get all"
            )
            raise InvalidHeader((FieldError("Last-Event-ID", message, "last_event_id"),))
        rest, ended = divmod(int(match[2]), 2)
        count = len(prediction.plan.seeds)
        outputs = frozenset(index for index in range(count) if rest >> index & 1)
        return cls(rest >> count, outputs, bool(ended))


async def prediction_events(
    updates: AsyncGenerator[Prediction, None], outputs: OutputStore, position: Position, with_progress: bool
) -> Events:
    """The events that follow `position`, until the prediction has ended. `updates` is the prediction as it changes."""
    writer = _EventWriter(outputs, position, with_progress)
    async with aclosing(updates):
        async for prediction in updates:
            async for event in writer.events(prediction):
                yield event


class _EventWriter:
    def __init__(self, outputs: OutputStore, position: Position, with_progress: bool) -> None:
        self._outputs = outputs
        self._position = position
        self._with_progress = with_progress
        self._progress: dict[int, Progress] = {}

    async def events(self, prediction: Prediction) -> Events:
        """The events that the client has not received when the prediction has this state."""
        if lines := self._new_logs(prediction):
            yield encode_text_event("logs", lines, self._id(prediction))
        for progress in self._new_progress(prediction):
            data = {"step": progress.step, "total": progress.total, "image": progress.index}
            yield encode_event("progress", data, self._id(prediction))
        for output in prediction.outputs:
            if uri := await self._new_output(prediction, output):
                yield encode_text_event("output", uri, self._id(prediction))
        if prediction.status == "failed":
            yield encode_event("error", {"detail": prediction.error}, self._id(prediction))
        if prediction.ended:
            self._position = replace(self._position, ended=True)
            yield encode_event("done", DONE[prediction.status], self._id(prediction))

    def _id(self, prediction: Prediction) -> str:
        return self._position.event_id(prediction)

    def _new_logs(self, prediction: Prediction) -> str:
        # If a process is lost, the last lines may be lost with it: the record then has less than the client.
        received = min(self._position.log_chars, len(prediction.logs))
        self._position = replace(self._position, log_chars=len(prediction.logs))
        return prediction.logs[received:]

    def _new_progress(self, prediction: Prediction) -> list[Progress]:
        if not self._with_progress:
            return []
        new = [each for each in prediction.progress if self._progress.get(each.index) != each]
        self._progress.update((each.index, each) for each in new)
        return new

    async def _new_output(self, prediction: Prediction, output: Output) -> str | None:
        """None if the client has this image, or if its file was removed."""
        if output.index in self._position.outputs:
            return None
        self._position = replace(self._position, outputs=self._position.outputs | {output.index})
        try:
            return await self._outputs.uri(prediction.id, output.name)
        except NotFound:
            return None


def _timestamp(prediction: Prediction) -> int:
    """Milliseconds since 1970."""
    return int(prediction.created_at.timestamp() * 1000)
