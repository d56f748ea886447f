"""Selects the images of the next batch. Pure: no torch, clock or thread."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

DEADLINE_FACTOR = 1.5
"""A request is due when this many times its remaining work has passed since its arrival."""
MAX_OWN_COST = 1.05
"""All images of a request advance together if that costs at most this share of their steps apart."""
MAX_SHARED_COST = 0.9
"""Another request joins a batch if that costs at most this share of the same steps apart. It delays the first one, so
the gain has to be clear."""


@dataclass(frozen=True, slots=True)
class BatchCandidate(Generic[Key]):
    """An image with steps left."""

    request_number: int
    """Number of its request; smaller is older."""
    image_index: int
    key: Key
    """Images with equal keys can share a batch."""
    steps_left: int = 1
    deadline_s: float = 0.0
    """Of its request."""


@dataclass(frozen=True, slots=True)
class ScheduledBatch(Generic[Key]):
    """The next batch, and the order of keys after it."""

    candidates: tuple[BatchCandidate[Key], ...]
    """All with the same key."""
    next_keys: tuple[Key, ...]
    """Keys that still have images, next one first: pass it to the next call."""


def deadline_s(arrival_s: float, remaining_s: float) -> float:
    """When a request is due. The request with the earliest deadline advances first.

    Short work is due soon. Finished steps move a deadline earlier, and only changed estimates move it later, so only
    requests that arrive before it can be preferred, and no request starves.
    """
    return arrival_s + DEADLINE_FACTOR * remaining_s


def select_batch(
    candidates: Sequence[BatchCandidate[Key]], step_s: Callable[[Key, int], float], max_batch: int
) -> tuple[BatchCandidate[Key], ...]:
    """The request with the earliest deadline, and others with its key where a common pass is cheaper.

    `step_s` gives the seconds of a pass by key and number of images. The images of a request advance together, or one
    after the other where that is cheaper. A batch has at most `max_batch` images.
    """
    ordered = sorted(candidates, key=attrgetter("deadline_s", "request_number", "steps_left", "image_index"))
    batch: list[BatchCandidate[Key]] = []
    apart_s = 0.0
    for _, group in groupby(ordered, key=attrgetter("request_number")):
        images = list(group)
        key = images[0].key
        if batch and key != batch[0].key:
            continue
        images = _own_batch(images, step_s, max_batch)
        size = len(batch) + len(images)
        together_apart_s = apart_s + step_s(key, len(images))
        if not batch or (size <= max_batch and step_s(key, size) <= MAX_SHARED_COST * together_apart_s):
            batch += images
            apart_s = together_apart_s
    return tuple(batch)


def _own_batch(
    images: list[BatchCandidate[Key]], step_s: Callable[[Key, int], float], max_batch: int
) -> list[BatchCandidate[Key]]:
    """The images of one request that advance together."""
    size, key = min(len(images), max_batch), images[0].key
    return images[:size] if step_s(key, size) <= MAX_OWN_COST * size * step_s(key, 1) else images[:1]


def select_batch_by_turns(
    candidates: Sequence[BatchCandidate[Key]], previous_keys: Sequence[Key], max_batch: int
) -> ScheduledBatch[Key]:
    """The images of the key whose turn it is. `previous_keys` are the `next_keys` of the previous batch.

    Keys take turns, one batch each, in order of arrival. Within a key the oldest requests go first. All images of a
    request enter a batch together. While they do not fit, newer requests fill the batch.
    """
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
