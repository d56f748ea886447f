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

from serve.lora.reference import LoraMetadata
from serve.lora.weights import Block

_FORMAT = "2"
"""Changes when blocks or cards of before must not be read any more."""
_CARD = "card-"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """What is known of the weights that a name meant when they were looked up."""

    metadata: LoraMetadata
    revision: str | None
    """Tells whether the name still means the same content; None where nobody can."""
    checked_at: float
    """Seconds since the epoch."""


class DiskCache:
    """Belongs to one process. Its methods block on the disk."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Room for `max_bytes`; what was used longest ago goes first."""
        self._folder = folder / _FORMAT
        self._max_bytes = max_bytes

    def entries(self) -> dict[str, CacheEntry]:
        """All cards on the shelf by name, the newest where several folders have one."""
        found: dict[str, CacheEntry] = {}
        for path in self._folder.glob(f"*/{_CARD}*"):
            card = _read_card(path)
            name = path.name.removeprefix(_CARD)
            if card and (name not in found or found[name].checked_at < card.checked_at):
                found[name] = card
        return found

    def read(self, key: str) -> Block | None:
        """The block of that content, or None."""
        path = self._folder / key / "block"
        try:
            block = np.fromfile(path, np.uint8)
            os.utime(path)
        except OSError:
            return None
        if block_key(block) == key:
            return block
        log.warning("a LoRA on the disk was damaged, and is brought again")
        shutil.rmtree(path.parent, ignore_errors=True)
        return None

    def write(self, name: str, card: CacheEntry, block: Block) -> None:
        """Puts a block on the shelf under `name`, which means no other from now on."""
        with _forgiven():
            folder = self._folder / card.metadata.key
            if not (folder / "block").is_file() and self._make_room(block.nbytes):
                _write(folder / "block", block.data)
        self.write_entry(name, card)

    def write_entry(self, name: str, card: CacheEntry) -> None:
        """Writes the card of a block that lies on the shelf."""
        with _forgiven():
            path = self._folder / card.metadata.key / f"{_CARD}{name}"
            if path.with_name("block").is_file():
                _write(path, json.dumps(asdict(card)).encode())
                for other in self._folder.glob(f"*/{path.name}"):
                    if other != path:
                        other.unlink()

    def _make_room(self, size_bytes: int) -> bool:
        if size_bytes > self._max_bytes:
            return False
        blocks = [(path.parent, path.stat()) for path in self._folder.glob("*/block")]
        used = sum(facts.st_size for _, facts in blocks)
        for folder, facts in sorted(blocks, key=lambda each: each[1].st_mtime):
            if used + size_bytes <= self._max_bytes:
                break
            shutil.rmtree(folder, ignore_errors=True)
            used -= facts.st_size
        return True


def block_key(block: Block) -> str:
    """The name of a block's content."""
    return hashlib.sha256(block.data).hexdigest()


def _read_card(path: Path) -> CacheEntry | None:
    try:
        told = json.loads(path.read_bytes())
        facts = LoraMetadata(**{**told["metadata"], "unapplied": tuple(told["metadata"]["unapplied"])})
        return CacheEntry(facts, told["revision"], told["checked_at"])
    except (OSError, ValueError, TypeError, KeyError):
        log.warning("a card of a LoRA on the disk was damaged")
        return None


def _write(path: Path, content: bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        beside = Path(file.name)
        try:
            file.write(content)
            file.close()
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


@contextmanager
def _forgiven() -> Iterator[None]:
    try:
        yield
    except OSError:
        log.warning("a LoRA could not be kept on the disk", exc_info=True)
