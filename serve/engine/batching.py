"""Selects the images of the next batch. Pure: no torch, clock or thread.

A batch holds images with equal keys (size and text length). Keys take turns, one batch each, in order of arrival, so no
size waits for another to finish. Within a key the oldest requests go first. All images of a request enter a batch
together. While they do not fit, newer requests fill the batch.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class BatchCandidate(Generic[Key]):
    """An image with steps left."""

    request_number: int
    """Number of its request; smaller is older."""
    image_index: int
    key: Key
    """Images with equal keys can share a batch."""


@dataclass(frozen=True, slots=True)
class ScheduledBatch(Generic[Key]):
    """The next batch, and the order of keys after it."""

    candidates: tuple[BatchCandidate[Key], ...]
    """All with the same key."""
    next_keys: tuple[Key, ...]
    """Keys that still have images, next one first: pass it to the next call."""


def select_batch(
    candidates: Sequence[BatchCandidate[Key]], previous_keys: Sequence[Key], max_batch: int
) -> ScheduledBatch[Key]:
    """The next batch of at most `max_batch` images. `keys` are the `next_keys` of the previous batch."""
    by_age = sorted(candidates, key=attrgetter("request_number", "image_index"))
    present = list(dict.fromkeys(image.key for image in by_age))
    if not present:
        return ScheduledBatch((), ())
    ordered = [key for key in previous_keys if key in present]
    first, *others = ordered + [key for key in present if key not in ordered]
    batch = tuple(_fill([image for image in by_age if image.key == first], max_batch))
    return ScheduledBatch(batch, (*others, first))


def _fill(by_age: Sequence[BatchCandidate[Key]], max_batch: int) -> Iterator[BatchCandidate[Key]]:
    """Adds complete requests, oldest first, while they fit. A larger request than any batch fills the free places."""
    room = max_batch
    for _, group in groupby(by_age, key=attrgetter("request_number")):
        images = list(group)
        if len(images) <= room or len(images) > max_batch:
            yield from images[:room]
            room -= min(room, len(images))
