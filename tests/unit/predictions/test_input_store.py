"""Storage of long inputs."""

import pytest

from serve.errors import NotFound
from serve.media.object_store import ObjectStore
from serve.predictions.input_store import InputStore
from tests.fakes import prediction

LONG = prediction().model_copy(update={"has_shortened_inputs": True})
INPUTS = {"prompt": "caf\u00e9", "image": "data:," + "x" * 100_000, "seed": 7}


async def test_long_inputs_are_stored_until_they_are_deleted(object_store: ObjectStore) -> None:
    store = InputStore(object_store)
    await store.save(LONG, INPUTS)
    assert await InputStore(object_store).load(LONG) == INPUTS
    await store.delete(LONG)
    with pytest.raises(NotFound):
        await store.load(LONG)
    await store.delete(LONG)


async def test_short_inputs_are_in_the_record(object_store: ObjectStore) -> None:
    store = InputStore(object_store)
    await store.save(prediction(), INPUTS)
    assert await store.load(prediction()) == prediction().inputs
