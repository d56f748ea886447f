"""Stores the full inputs of unfinished predictions whose records have only shortened ones."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from serve.errors import NotFound, StorageUnavailable
from serve.media.object_store import ObjectStore
from serve.predictions.prediction import Prediction

log = logging.getLogger(__name__)


class InputStore:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def save(self, prediction: Prediction, raw_inputs: Mapping[str, Any]) -> None:
        """Stores inputs that the record does not have in full. Raises `StorageFailed`."""
        if prediction.has_shortened_inputs:
            content = json.dumps(dict(raw_inputs)).encode()
            await self._store.put(_key(prediction.id), content, "application/json", "inputs.json")

    async def load(self, prediction: Prediction) -> dict[str, Any]:
        """The full inputs. Raises `NotFound` if they are not stored, and `StorageUnavailable`."""
        if not prediction.has_shortened_inputs:
            return prediction.inputs
        try:
            inputs: dict[str, Any] = json.loads(await self._store.read(_key(prediction.id)))
        except (FileNotFoundError, ValueError):
            raise NotFound("the inputs of this prediction were lost; send it again") from None
        return inputs

    async def delete(self, prediction: Prediction) -> None:
        """Raises `StorageUnavailable`."""
        if prediction.has_shortened_inputs:
            await self._store.delete_folder(f"inputs/{prediction.id}")

    async def try_delete(self, prediction: Prediction) -> None:
        """Like `delete`; what cannot be deleted now is deleted with the data of the prediction."""
        try:
            await self.delete(prediction)
        except StorageUnavailable:
            log.warning("%s: its inputs are deleted later", prediction.log_id, extra=prediction.log_fields)


def _key(prediction_id: str) -> str:
    return f"inputs/{prediction_id}/inputs.json"
