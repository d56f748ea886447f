"""Checks and encodes the previews of one prediction in threads of a replica."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from serve.engine.request import PreviewReady
from serve.events import Preview
from serve.media.image_codec import encode_image

if TYPE_CHECKING:
    from serve.engine.safety_checker import SafetyChecker

QUALITY = 70
MAX_BYTES = 16_384
"""Larger previews are dropped: they pass through the database."""

log = logging.getLogger(__name__)


class PreviewEncoder:
    """`checker` is that of the replica, or None if the prediction is not checked.

    A flagged preview is withheld, and with it all later ones of its image. A preview that arrives while an earlier one
    of its image is still being encoded is dropped, so that previews never take more than their share of the threads.
    """

    def __init__(self, executor: Executor, checker: "SafetyChecker | None", checks_previews: bool) -> None:
        self._executor = executor
        self._checker = checker
        # A checker on the engine's device makes the engine wait for all queued passes.
        self.is_allowed = checker is None or (checks_previews and not checker.on_device)
        self._withheld: set[int] = set()
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def start(self, ready: PreviewReady, add: Callable[[Preview], None]) -> None:
        """Calls `add` when the preview is encoded, unless it is withheld."""
        if ready.index in self._withheld or ready.index in self._tasks:
            return
        task = asyncio.create_task(self._process(ready, add))
        self._tasks[ready.index] = task
        task.add_done_callback(lambda _: self._tasks.pop(ready.index, None))

    def cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _process(self, ready: PreviewReady, add: Callable[[Preview], None]) -> None:
        try:
            content = await asyncio.get_running_loop().run_in_executor(self._executor, self._encode, ready)
        except Exception:
            log.exception("a preview failed; its image has no further ones")
            content = None
        if content is None:
            self._withheld.add(ready.index)
        elif len(content) <= MAX_BYTES:
            add(Preview(ready.index, ready.step, ready.total, content))

    def _encode(self, ready: PreviewReady) -> bytes | None:
        """None for a flagged preview."""
        if self._checker is not None and self._checker.is_flagged(ready.pixels):
            return None
        return encode_image(ready.pixels, "webp", QUALITY)
