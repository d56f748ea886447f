"""Stores the full inputs of unfinished predictions whose records have only shortened ones."""

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from serve.database.times import to_us
from serve.errors import NotFound, StorageUnavailable
from serve.media.object_store import ObjectStore
from serve.predictions.prediction import Prediction

log = logging.getLogger(__name__)


FOLDER = "inputs"


class InputStore:
    """The inputs of each prediction are in a folder of their own."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def save(self, prediction: Prediction, raw_inputs: Mapping[str, Any]) -> None:
        """Stores inputs that the record does not have in full. Raises `StorageFailed`."""
        if prediction.has_shortened_inputs:
            content = json.dumps(dict(raw_inputs)).encode()
            await self._store.put(_key(prediction), content, "application/json", "inputs.json")

    async def load(self, prediction: Prediction) -> dict[str, Any]:
        """The full inputs. Raises `NotFound` if they are not stored, and `StorageUnavailable`."""
        if not prediction.has_shortened_inputs:
            return prediction.inputs
        try:
            inputs: dict[str, Any] = json.loads(await self._store.read(_key(prediction)))
        except (FileNotFoundError, ValueError):
            raise NotFound("the inputs of this prediction were lost; send it again") from None
        return inputs

    async def delete(self, prediction: Prediction) -> None:
        """Raises `StorageUnavailable`."""
        if prediction.has_shortened_inputs:
            await self.delete_folder(folder_name(prediction.id, to_us(prediction.created_at)))

    async def try_delete(self, prediction: Prediction) -> None:
        """Like `delete`; what cannot be deleted now is deleted by `Retention`."""
        try:
            await self.delete(prediction)
        except StorageUnavailable:
            log.warning("%s: its inputs are deleted later", prediction.log_id, extra=prediction.log_fields)

    async def folders(self, older_than: datetime) -> list[str]:
        """The names of the folders that are older. Raises `StorageUnavailable`."""
        return await self._store.folders(FOLDER, older_than)

    async def delete_folder(self, name: str) -> None:
        """Raises `StorageUnavailable`."""
        await self._store.delete_folder(f"{FOLDER}/{name}")


def folder_name(prediction_id: str, created_us: int) -> str:
    """The name of the folder of a prediction.

    It has the time of creation, because clients can choose the same id for two requests at the same time. Only one of
    them becomes a prediction.
    """
    return f"{prediction_id}.{created_us}"


def _key(prediction: Prediction) -> str:
    return f"{FOLDER}/{folder_name(prediction.id, to_us(prediction.created_at))}/inputs.json"
