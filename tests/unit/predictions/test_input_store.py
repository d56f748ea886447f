"""Storage of long inputs."""

from datetime import timedelta

import pytest

from serve.errors import NotFound, StorageUnavailable
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


async def test_requests_with_the_same_id_have_inputs_of_their_own(object_store: ObjectStore) -> None:
    store = InputStore(object_store)
    other = LONG.model_copy(update={"created_at": LONG.created_at + timedelta(microseconds=1)})
    await store.save(LONG, INPUTS)
    await store.save(other, {"prompt": "other"})
    await store.delete(other)
    assert await store.load(LONG) == INPUTS


async def test_short_inputs_are_in_the_record(object_store: ObjectStore) -> None:
    store = InputStore(object_store)
    await store.save(prediction(), INPUTS)
    assert await store.load(prediction()) == prediction().inputs


async def test_inputs_that_cannot_be_deleted_are_no_error(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StorageUnavailable

    monkeypatch.setattr(ObjectStore, "delete_folder", fail)
    await InputStore(object_store).try_delete(LONG)
    with pytest.raises(StorageUnavailable):
        await InputStore(object_store).delete(LONG)
