"""Previews in the threads of a replica: which are checked, encoded, dropped and withheld."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
import pytest

from serve import preview_encoder
from serve.engine.request import PreviewReady
from serve.events import Preview
from serve.model_specs import ImageArray
from serve.preview_encoder import PreviewEncoder


def preview(step: int, index: int = 0) -> PreviewReady:
    return PreviewReady(index, step, 8, np.full((8, 8, 3), step, np.uint8))


class Checker:
    """Flags the previews of some steps, and waits until `may_answer` is set."""

    on_device = False

    def __init__(self, flagged_steps: tuple[int, ...] = (), error: Exception | None = None) -> None:
        self.checked: list[int] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._flagged_steps = flagged_steps
        self._error = error

    def is_flagged(self, image: ImageArray) -> bool:
        self.may_answer.wait(10)
        self.checked.append(int(image[0, 0, 0]))
        if self._error is not None:
            raise self._error
        return self.checked[-1] in self._flagged_steps


class Run:
    def __init__(self, encoder: PreviewEncoder) -> None:
        self.encoder = encoder
        self.sent: list[Preview] = []

    async def send(self, *previews: PreviewReady) -> list[tuple[int, int]]:
        """Index and step of each preview so far, when the encoder has nothing more to do."""
        for each in previews:
            self.encoder.start(each, self.sent.append)
        await asyncio.gather(*self.encoder._tasks.values(), return_exceptions=True)
        return [(each.index, each.step) for each in self.sent]


@asynccontextmanager
async def running(checker: Checker | None = None) -> AsyncIterator[Run]:
    with ThreadPoolExecutor(2) as executor:
        yield Run(PreviewEncoder(executor, checker, checks_previews=True))


async def test_flagged_preview_and_later_ones_of_its_image_are_withheld() -> None:
    checker = Checker(flagged_steps=(2,))
    async with running(checker) as run:
        assert await run.send(preview(1)) == [(0, 1)]
        assert await run.send(preview(2)) == [(0, 1)]
        assert await run.send(preview(3), preview(3, index=1)) == [(0, 1), (1, 3)]
    assert checker.checked == [1, 2, 3]


async def test_preview_is_withheld_if_the_checker_fails() -> None:
    async with running(Checker(error=RuntimeError())) as run:
        assert await run.send(preview(1)) == []
        assert await run.send(preview(2)) == []


async def test_preview_is_dropped_while_an_earlier_one_of_its_image_is_encoded() -> None:
    checker = Checker()
    checker.may_answer.clear()
    async with running(checker) as run:
        run.encoder.start(preview(1), run.sent.append)
        run.encoder.start(preview(2), run.sent.append)
        checker.may_answer.set()
        assert await run.send() == [(0, 1)]
        assert await run.send(preview(3)) == [(0, 1), (0, 3)]


async def test_cancelled_previews_are_not_sent() -> None:
    checker = Checker()
    checker.may_answer.clear()
    async with running(checker) as run:
        run.encoder.start(preview(1), run.sent.append)
        run.encoder.cancel()
        checker.may_answer.set()
        assert await run.send() == []


async def test_large_preview_is_dropped_and_later_ones_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as run:
        with monkeypatch.context() as patches:
            patches.setattr(preview_encoder, "MAX_BYTES", 10)
            assert await run.send(preview(1)) == []
        assert await run.send(preview(2)) == [(0, 2)]
