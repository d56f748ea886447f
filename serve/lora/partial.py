"""A file that grows over several answers of a server, and is hashed as it grows. Its file work is done in threads."""

import asyncio
import hashlib
import re
from http.client import PARTIAL_CONTENT
from pathlib import Path

from serve.media.transport import Answer, Failure

FLUSHED_BYTES = 2**20
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Partial:
    """What has arrived of a download; `path` is its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tag: str | None = None
        """How the server tells this content from another."""
        self.received = 0
        self._hash = hashlib.sha256()
        self._waiting = bytearray()

    @property
    def sha256(self) -> str:
        """Of all that was flushed."""
        return self._hash.hexdigest()

    def rest(self) -> dict[str, str]:
        """The headers that ask for what is missing, where the server has a tag by which it can be trusted to go on."""
        if not self.received or not self.tag or self.tag.startswith("W/"):
            return {}
        return {"Range": f"bytes={self.received}-", "If-Range": self.tag}

    def begin(self, answer: Answer) -> int | None:
        """Takes up where `answer` does: at what is missing, or at the beginning. Returns the bytes of the whole.

        Raises `Failure` for an answer with another part.
        """
        if answer.status != PARTIAL_CONTENT:
            self.forget()
            self.tag = answer.headers.get("etag") or answer.headers.get("last-modified")
            length = answer.headers.get("content-length")
            return int(length) if length else None
        match = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if not match or int(match[1]) != self.received:
            self.forget()
            raise Failure("its server sent another part than it was asked for", passing=True)
        return None if match[2] == "*" else int(match[2])

    async def add(self, chunk: bytes) -> None:
        self._waiting += chunk
        self.received += len(chunk)
        if len(self._waiting) >= FLUSHED_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Brings what was added to the file. Raises `OSError`."""
        waiting, self._waiting = self._waiting, bytearray()
        await asyncio.to_thread(self._append, waiting)

    def forget(self) -> None:
        """Drops all that has arrived."""
        self.path.unlink(missing_ok=True)
        self.tag, self.received = None, 0
        self._hash, self._waiting = hashlib.sha256(), bytearray()

    def _append(self, content: bytearray) -> None:
        # Opened each time: a thread whose caller was cancelled must not write to what is another file by now.
        with self.path.open("ab") as file:
            file.write(content)
        self._hash.update(content)
