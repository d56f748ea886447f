"""Stores the full inputs of unfinished predictions whose records have only shortened ones, in a local folder."""

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.errors import NotFound, StorageFailed
from serve.predictions.prediction import Prediction

log = logging.getLogger(__name__)


class InputStore:
    """With several nodes, `folder` must be on a shared file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    async def save(self, prediction: Prediction, raw_inputs: Mapping[str, Any]) -> None:
        """Stores inputs that the record does not have in full. Raises `StorageFailed`."""
        if not prediction.has_shortened_inputs:
            return
        try:
            await asyncio.to_thread(_write, self._path(prediction.id), dict(raw_inputs))
        except OSError as error:
            log.exception("prediction %s: could not store its inputs", prediction.id)
            raise StorageFailed from error

    async def load(self, prediction: Prediction) -> dict[str, Any]:
        """The full inputs. Raises `NotFound` if they are stored where this process cannot read them."""
        if not prediction.has_shortened_inputs:
            return prediction.inputs
        try:
            return await asyncio.to_thread(_read, self._path(prediction.id))
        except (OSError, ValueError):
            raise NotFound("the inputs of this prediction were lost; send it again") from None

    async def delete(self, prediction: Prediction) -> None:
        await asyncio.to_thread(self._path(prediction.id).unlink, missing_ok=True)

    def _path(self, prediction_id: str) -> Path:
        return self._folder / f"{prediction_id}.json"


def _write(path: Path, inputs: dict[str, Any]) -> None:
    partial = path.with_suffix(".part")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(inputs, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def _read(path: Path) -> dict[str, Any]:
    inputs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return inputs
