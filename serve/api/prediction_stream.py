"""The server-sent events of a prediction, as Replicate's `urls.stream` gives them."""

import base64
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Self

from serve.api.event_stream import Events, encode_event, encode_text_event
from serve.api.http_messages import InvalidHeader
from serve.errors import FieldError, NotFound
from serve.inputs import shorten_name
from serve.media.output_store import OutputStore
from serve.predictions.prediction import Output, Prediction, Progress
from serve.predictions.preview_rows import StoredPreview

DONE: dict[str, dict[str, str]] = {"succeeded": {}, "canceled": {"reason": "canceled"}, "failed": {"reason": "error"}}
"""The data of the event `done`, by status."""
ReadPreviews = Callable[[str], Awaitable[Mapping[int, StoredPreview]]]
"""The newest previews of a prediction by its id, each by the index of its image."""
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
    updates: AsyncGenerator[Prediction, None],
    outputs: OutputStore,
    position: Position,
    read_previews: ReadPreviews | None,
) -> Events:
    """The events that follow `position`, until the prediction has ended. `updates` is the prediction as it changes.

    There are events of progress if there is `read_previews`, which is called if a preview is new.
    """
    writer = _EventWriter(outputs, position, read_previews)
    async with aclosing(updates):
        async for prediction in updates:
            async for event in writer.events(prediction):
                yield event


class _EventWriter:
    def __init__(self, outputs: OutputStore, position: Position, read_previews: ReadPreviews | None) -> None:
        self._outputs = outputs
        self._position = position
        self._read_previews = read_previews
        self._progress: dict[int, Progress] = {}

    async def events(self, prediction: Prediction) -> Events:
        """The events that the client has not received when the prediction has this state."""
        if lines := self._new_logs(prediction):
            yield encode_text_event("logs", lines, self._id(prediction))
        for data in await self._new_progress(prediction):
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

    async def _new_progress(self, prediction: Prediction) -> list[dict[str, Any]]:
        """The data of an event for each image that has progressed, with its preview if that is new."""
        if self._read_previews is None:
            return []
        sent, self._progress = self._progress, {each.index: each for each in prediction.progress}
        moved = [each for each in prediction.progress if _has_moved(each, sent.get(each.index))]
        fresh = {each.index for each in moved if _has_new_preview(each, sent.get(each.index))}
        previews = await self._read_previews(prediction.id) if fresh else {}
        return [_progress_data(each, previews.get(each.index) if each.index in fresh else None) for each in moved]

    async def _new_output(self, prediction: Prediction, output: Output) -> str | None:
        """None if the client has this image, or if its file was removed."""
        if output.index in self._position.outputs:
            return None
        self._position = replace(self._position, outputs=self._position.outputs | {output.index})
        try:
            return await self._outputs.uri(prediction.id, output.name)
        except NotFound:
            return None


def _has_moved(progress: Progress, sent: Progress | None) -> bool:
    """Whether a client has something to show. The end of a preview is not: the image follows."""
    return sent is None or progress.step != sent.step or _has_new_preview(progress, sent)


def _has_new_preview(progress: Progress, sent: Progress | None) -> bool:
    return progress.preview_step > 0 and (sent is None or progress.preview_step != sent.preview_step)


def _progress_data(progress: Progress, preview: StoredPreview | None) -> dict[str, Any]:
    data = {"step": progress.step, "total": progress.total, "image": progress.index}
    if preview is None:
        return data
    return data | {"preview": f"data:image/webp;base64,{base64.b64encode(preview.content).decode('ascii')}"}


def _timestamp(prediction: Prediction) -> int:
    """Milliseconds since 1970."""
    return int(prediction.created_at.timestamp() * 1000)
