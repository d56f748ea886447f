"""Disk tier of the LoRA cache."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from serve import telemetry
from serve.lora.resolved_lora import LoraMetadata
from serve.lora.weights import Block

_FORMAT = "4"
"""Folder name; change it when blocks or entries of earlier releases cannot be read any more."""
_BLOCK_NAME = "block"
_ENTRY_PREFIX = "entry-"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """Describes the weights that a name resolved to, and when that was last checked."""

    metadata: LoraMetadata
    revision: str | None
    """Identifies the content at its source, for revalidation; None if the source has no such identifier."""
    checked_at: float
    """Seconds since the epoch."""


class DiskCache:
    """Keeps packed weights and the entries of the names that resolve to them, in one folder per block.

    Holds at most `max_bytes` of blocks and evicts the least recently used ones. Write errors are logged and ignored.
    The folder belongs to one process. All methods block.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder / _FORMAT
        self._max_bytes = max_bytes
        telemetry.LORA_EVICTIONS.add(0, tier="disk")
        telemetry.LORA_WRITE_ERRORS.add(0)
        telemetry.LORA_CACHE_LIMIT_BYTES.set(max_bytes, tier="disk")
        self._record_size()

    def entries(self) -> dict[str, CacheEntry]:
        """All entries by name; if a name has several, the most recently checked one."""
        entries: dict[str, CacheEntry] = {}
        for path in self._folder.glob(f"*/{_ENTRY_PREFIX}*"):
            entry = _read_entry(path)
            name = path.name.removeprefix(_ENTRY_PREFIX)
            if entry and (name not in entries or entries[name].checked_at < entry.checked_at):
                entries[name] = entry
        return entries

    def read(self, key: str) -> Block | None:
        """The block with this key, or None if it is missing or damaged. A damaged block is deleted."""
        path = self._folder / key / _BLOCK_NAME
        try:
            block = np.fromfile(path, np.uint8)
            os.utime(path)
        except OSError:
            return None
        if block_key(block) == key:
            return block
        log.warning("Deleting a damaged LoRA from the disk cache")
        shutil.rmtree(path.parent, ignore_errors=True)
        return None

    def write(self, name: str, entry: CacheEntry, block: Block) -> None:
        """Writes `block`, and `entry` as the only one of `name`."""
        with _log_os_errors():
            folder = self._folder / entry.metadata.key
            if not (folder / _BLOCK_NAME).is_file() and self._evict_for(block.nbytes):
                _write_atomically(folder / _BLOCK_NAME, block.data)
                self._record_size()
        self.write_entry(name, entry)

    def write_entry(self, name: str, entry: CacheEntry) -> None:
        """Writes `entry` as the only one of `name`, if its block is in the cache."""
        with _log_os_errors():
            path = self._folder / entry.metadata.key / f"{_ENTRY_PREFIX}{name}"
            if path.with_name(_BLOCK_NAME).is_file():
                _write_atomically(path, json.dumps(asdict(entry)).encode())
                for other in self._folder.glob(f"*/{path.name}"):
                    if other != path:
                        other.unlink()

    def _evict_for(self, size_bytes: int) -> bool:
        """Evicts blocks until `size_bytes` fit. Returns False if they never fit."""
        if size_bytes > self._max_bytes:
            return False
        blocks = self._blocks()
        used_bytes = sum(status.st_size for _, status in blocks)
        for folder, status in sorted(blocks, key=lambda block: block[1].st_mtime):
            if used_bytes + size_bytes <= self._max_bytes:
                break
            shutil.rmtree(folder, ignore_errors=True)
            used_bytes -= status.st_size
            telemetry.LORA_EVICTIONS.add(tier="disk")
        return True

    def _blocks(self) -> list[tuple[Path, os.stat_result]]:
        """The folder of each block, with the status of its file."""
        return [(path.parent, path.stat()) for path in self._folder.glob(f"*/{_BLOCK_NAME}")]

    def _record_size(self) -> None:
        telemetry.LORA_CACHE_BYTES.set(sum(status.st_size for _, status in self._blocks()), tier="disk")


def block_key(block: Block) -> str:
    """The SHA-256 of a block, in hexadecimal digits."""
    return hashlib.sha256(block.data).hexdigest()


def _read_entry(path: Path) -> CacheEntry | None:
    try:
        fields = json.loads(path.read_bytes())
        metadata = LoraMetadata(**{**fields["metadata"], "unapplied": tuple(fields["metadata"]["unapplied"])})
        return CacheEntry(metadata, fields["revision"], fields["checked_at"])
    except (OSError, ValueError, TypeError, KeyError):
        log.warning("Ignoring a damaged entry in the LoRA disk cache")
        return None


def _write_atomically(path: Path, content: bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.close()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _log_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError:
        telemetry.LORA_WRITE_ERRORS.add()
        log.warning("Writing to the LoRA disk cache failed", exc_info=True)
