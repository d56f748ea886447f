"""Stores finished images in a local folder, bounded by age and total size.

Each prediction has a folder with files `out-{i}.{webp,jpg,png}`. The oldest predictions are removed first.
"""

import asyncio
import base64
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from serve.errors import NotFound, StorageFailed
from serve.media.encode import MEDIA_TYPES, ImageFormat
from serve.settings import OutputSettings

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
NAME = re.compile(rf"out-(?:0|[1-9][0-9]{{0,2}})\.(?:{'|'.join(MEDIA_TYPES)})")
UNFINISHED = ".part"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    """The outputs of one prediction: when the last was saved, in seconds since 1970, and how many bytes they have."""

    saved_s: float
    size_bytes: int


class OutputStore:
    """The outputs below `settings.folder`, where those of an earlier process are found again.

    Without a folder they lie in a temporary one, which goes with this object. `now` tells seconds since 1970. Whoever
    owns the store calls `sweep` now and then: what is too old is never given out, but takes space until then.
    """

    def __init__(self, settings: OutputSettings, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._now = now
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if settings.folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="flux-serve-outputs-")
            self._folder = Path(self._temporary.name)
        else:
            self._folder = settings.folder
            self._folder.mkdir(parents=True, exist_ok=True)
        self._kept = _found(self._folder)
        """By prediction id, the oldest first."""
        self._writing = threading.Lock()

    async def save(self, prediction_id: str, index: int, content: bytes, file_format: ImageFormat) -> str:
        """Keeps picture `index` of a prediction, makes room for it, and returns its name.

        Raises `StorageFailed` when the disk does not take it, and `ValueError` for an id that can be no folder's name.
        """
        name = f"out-{index}.{file_format}"
        if not ID.fullmatch(prediction_id) or not NAME.fullmatch(name):
            raise ValueError(f"{prediction_id!r} and {name!r} cannot be stored")
        try:
            await asyncio.to_thread(self._save, prediction_id, name, content)
        except OSError as error:
            log.exception("prediction %s: %s was not stored", prediction_id, name)
            raise StorageFailed from error
        return name

    async def read(self, prediction_id: str, name: str) -> tuple[bytes, str]:
        """The content of an output and its media type. Raises `NotFound`, also for what was never a name of ours."""
        path = self._path(prediction_id, name)
        return await asyncio.to_thread(self._read, path), _media_type(name)

    async def uri(self, prediction_id: str, name: str) -> str:
        """A `data:` URI of an output, or its URL below `settings.public_url`, as set. Raises `NotFound`."""
        path = self._path(prediction_id, name)
        if self._settings.as_data:
            return await asyncio.to_thread(self._data_uri, path)
        await asyncio.to_thread(self._check_age, path)
        return f"{self._settings.public_url.rstrip('/')}/outputs/{prediction_id}/{name}"

    async def sweep(self) -> None:
        """Removes what is too old, and the oldest of what is too much."""
        await asyncio.to_thread(self._sweep)

    async def aclose(self) -> None:
        """Removes the temporary folder, if that is where the outputs lie."""
        if self._temporary:
            await asyncio.to_thread(self._temporary.cleanup)

    def _path(self, prediction_id: str, name: str) -> Path:
        if not ID.fullmatch(prediction_id) or not NAME.fullmatch(name):
            raise self._gone()
        return self._folder / prediction_id / name

    def _gone(self) -> NotFound:
        return NotFound(f"there is no such output; outputs are kept for {self._settings.max_age_s:g} s at most")

    def _read(self, path: Path) -> bytes:
        self._check_age(path)
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise self._gone() from error

    def _data_uri(self, path: Path) -> str:
        return f"data:{_media_type(path.name)};base64,{base64.b64encode(self._read(path)).decode('ascii')}"

    def _check_age(self, path: Path) -> None:
        try:
            saved_s = path.stat().st_mtime
        except FileNotFoundError as error:
            raise self._gone() from error
        if saved_s < self._now() - self._settings.max_age_s:
            raise self._gone()

    def _save(self, prediction_id: str, name: str, content: bytes) -> None:
        now_s = self._now()
        folder = self._folder / prediction_id
        with self._writing:
            folder.mkdir(exist_ok=True)
            _write_whole(folder / name, content, now_s)
            self._kept.pop(prediction_id, None)
            self._kept[prediction_id] = _Kept(now_s, sum(file.stat().st_size for file in folder.iterdir()))
        self._sweep(spared=prediction_id)

    def _sweep(self, spared: str | None = None) -> None:
        with self._writing:
            total_bytes = sum(kept.size_bytes for kept in self._kept.values())
            for prediction_id, kept in list(self._kept.items()):
                too_old = kept.saved_s < self._now() - self._settings.max_age_s
                if not too_old and total_bytes <= self._settings.max_bytes:
                    break
                if prediction_id != spared:
                    shutil.rmtree(self._folder / prediction_id, ignore_errors=True)
                    del self._kept[prediction_id]
                    total_bytes -= kept.size_bytes


def _write_whole(path: Path, content: bytes, saved_s: float) -> None:
    """Lets `path` appear with all its content, or leaves nothing behind and raises `OSError`."""
    part = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        part.write_bytes(content)
        os.utime(part, (saved_s, saved_s))
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()  # Only where it is empty.
        raise


def _found(folder: Path) -> dict[str, _Kept]:
    """What an earlier process left in `folder`, the oldest first. Whatever does not look like ours is left alone."""
    found = {}
    for path in folder.iterdir():
        if ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            files = list(path.iterdir())
            if files and all(_is_ours(file.name) for file in files):
                facts = [file.stat() for file in files]
                saved_s = max(fact.st_mtime for fact in facts)
                found[path.name] = _Kept(saved_s, sum(fact.st_size for fact in facts))
    return dict(sorted(found.items(), key=lambda item: item[1].saved_s))


def _is_ours(name: str) -> bool:
    whole = name.removeprefix(".").removesuffix(UNFINISHED) if name.startswith(".") else name
    return NAME.fullmatch(whole) is not None


def _media_type(name: str) -> str:
    return MEDIA_TYPES[name.rpartition(".")[2]]
