"""Stores generated images in a local folder, bounded by age and total size.

Each prediction has a subfolder with files `out-{index}.{webp,jpg,png}`. The oldest predictions are removed first.
"""

import asyncio
import base64
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from serve.errors import NotFound, StorageFailed
from serve.media.image_codec import MEDIA_TYPES
from serve.media.store_folder import StoreFolder
from serve.model_specs import ImageFormat
from serve.settings import OutputSettings

PREDICTION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
FILE_NAME = re.compile(rf"out-(?:0|[1-9][0-9]{{0,2}})\.(?:{'|'.join(MEDIA_TYPES)})")
PARTIAL_SUFFIX = ".part"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _StoredPrediction:
    saved_s: float
    """When its last output was saved, in seconds since 1970."""
    size_bytes: int


class OutputStore:
    """Stores outputs in `settings.folder`, and finds those that an earlier process stored there.

    Without a folder, a temporary one is used and removed by `aclose`. `now` returns seconds since 1970. Outputs that
    are too old are never returned, but they use disk space until `save` or `sweep` is called.
    """

    def __init__(self, settings: OutputSettings, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._now = now
        self._store_folder = StoreFolder(settings.folder, "flux-serve-outputs-")
        self._folder = self._store_folder.path
        self._stored = _scan(self._folder)
        """By prediction id, the oldest first."""
        self._write_lock = threading.Lock()

    async def save(self, prediction_id: str, index: int, content: bytes, file_format: ImageFormat) -> str:
        """Stores image `index` of a prediction, removes old predictions if space is needed, and returns the file name.

        Raises `StorageFailed` if it cannot be written, and `ValueError` if `prediction_id` is not a valid folder name.
        """
        name = f"out-{index}.{file_format}"
        if not PREDICTION_ID.fullmatch(prediction_id) or not FILE_NAME.fullmatch(name):
            raise ValueError(f"invalid prediction id {prediction_id!r} or file name {name!r}")
        try:
            await asyncio.to_thread(self._save, prediction_id, name, content)
        except OSError as error:
            log.exception("prediction %s: could not store %s", prediction_id, name)
            raise StorageFailed from error
        return name

    async def read(self, prediction_id: str, name: str) -> tuple[bytes, str]:
        """Returns the content of an output and its media type. Raises `NotFound`, also for invalid ids and names."""
        path = self._path(prediction_id, name)
        return await asyncio.to_thread(self._read, path), _media_type(name)

    async def uri(self, prediction_id: str, name: str) -> str:
        """Returns an output as a `data:` URI or a URL below `settings.public_url`, as `settings.delivery` says.

        Raises `NotFound`.
        """
        path = self._path(prediction_id, name)
        if self._settings.uses_data_uris:
            return await asyncio.to_thread(self._data_uri, path)
        await asyncio.to_thread(self._check_age, path)
        return f"{self._settings.base_url}/outputs/{prediction_id}/{name}"

    async def sweep(self) -> None:
        """Removes predictions that are too old, then the oldest ones until the rest fits `settings.max_bytes`."""
        await asyncio.to_thread(self._sweep)

    async def aclose(self) -> None:
        """Removes the temporary folder, if one is used."""
        await self._store_folder.aclose()

    def _save(self, prediction_id: str, name: str, content: bytes) -> None:
        now_s = self._now()
        folder = self._folder / prediction_id
        with self._write_lock:
            folder.mkdir(exist_ok=True)
            _write_atomically(folder / name, content, now_s)
            size_bytes = sum(file.stat().st_size for file in folder.iterdir())
            self._stored.pop(prediction_id, None)
            self._stored[prediction_id] = _StoredPrediction(now_s, size_bytes)
        self._sweep(protected_id=prediction_id)

    def _sweep(self, protected_id: str | None = None) -> None:
        with self._write_lock:
            total_bytes = sum(stored.size_bytes for stored in self._stored.values())
            for prediction_id, stored in list(self._stored.items()):
                too_old = stored.saved_s < self._now() - self._settings.max_age_s
                if not too_old and total_bytes <= self._settings.max_bytes:
                    break
                if prediction_id != protected_id:
                    shutil.rmtree(self._folder / prediction_id, ignore_errors=True)
                    del self._stored[prediction_id]
                    total_bytes -= stored.size_bytes

    def _path(self, prediction_id: str, name: str) -> Path:
        if not PREDICTION_ID.fullmatch(prediction_id) or not FILE_NAME.fullmatch(name):
            raise self._not_found()
        return self._folder / prediction_id / name

    def _data_uri(self, path: Path) -> str:
        return f"data:{_media_type(path.name)};base64,{base64.b64encode(self._read(path)).decode('ascii')}"

    def _read(self, path: Path) -> bytes:
        self._check_age(path)
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise self._not_found() from error

    def _check_age(self, path: Path) -> None:
        try:
            saved_s = path.stat().st_mtime
        except FileNotFoundError as error:
            raise self._not_found() from error
        if saved_s < self._now() - self._settings.max_age_s:
            raise self._not_found()

    def _not_found(self) -> NotFound:
        return NotFound(f"there is no such output; outputs are kept for at most {self._settings.max_age_s:g} s")


def _scan(folder: Path) -> dict[str, _StoredPrediction]:
    """Finds the predictions of an earlier process, the oldest first. Subfolders with other files are ignored."""
    found = {}
    for path in folder.iterdir():
        if PREDICTION_ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            files = list(path.iterdir())
            if files and all(_is_output(file.name) for file in files):
                stats = [file.stat() for file in files]
                saved_s = max(stat.st_mtime for stat in stats)
                found[path.name] = _StoredPrediction(saved_s, sum(stat.st_size for stat in stats))
    return dict(sorted(found.items(), key=lambda item: item[1].saved_s))


def _is_output(name: str) -> bool:
    """Whether `name` is that of an output or of one that was not completely written."""
    full_name = name.removeprefix(".").removesuffix(PARTIAL_SUFFIX) if name.startswith(".") else name
    return FILE_NAME.fullmatch(full_name) is not None


def _write_atomically(path: Path, content: bytes, saved_s: float) -> None:
    """Writes a temporary file and renames it to `path`. On an `OSError`, nothing is left behind."""
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    try:
        partial.write_bytes(content)
        os.utime(partial, (saved_s, saved_s))
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()  # Fails if the prediction has other outputs.
        raise


def _media_type(name: str) -> str:
    return MEDIA_TYPES[name.rpartition(".")[2]]
