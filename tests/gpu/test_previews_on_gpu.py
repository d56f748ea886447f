"""Previews on a GPU: equal images, and a preview for each step that has one."""

from queue import SimpleQueue

import numpy as np

from serve.engine.engine import Engine
from serve.engine.request import Completed, EngineEvent, FinalEvent, ImageReady, PreviewReady
from serve.model_specs import ImageArray
from serve.settings import PoolSettings
from tests.gpu.helpers import DEVICE, SIZE, LoadOnGpu
from tests.unit.engine.requests import Mode, make_request

TIMEOUT_S = 120


def _generate(engine: Engine, mode: Mode, previews: int) -> tuple[list[ImageArray], list[PreviewReady]]:
    queue: SimpleQueue[EngineEvent] = SimpleQueue()
    engine.submit(make_request(mode, size=SIZE, seeds=(1, 2), steps=8, previews=previews), queue.put)
    images, found = {}, []
    while not isinstance(event := queue.get(timeout=TIMEOUT_S), FinalEvent):
        if isinstance(event, ImageReady):
            images[event.index] = event.to_host()
        if isinstance(event, PreviewReady):
            found.append(event)
    assert isinstance(event, Completed)
    return [images[index] for index in sorted(images)], found


def test_images_are_equal_with_and_without_previews(load_on_gpu: LoadOnGpu) -> None:
    pool = PoolSettings(model="dev", device=DEVICE, disable_batching=True, cuda_graphs=False)
    engine = Engine(load_on_gpu(), pool)
    engine.start()
    try:
        modes: tuple[Mode, ...] = ("text_to_image", "inpainting")
        for mode in modes:
            (images, previews), (expected, none) = (_generate(engine, mode, count) for count in (3, 0))
            assert all(np.array_equal(image, other) for image, other in zip(images, expected, strict=True))
            assert none == []
            assert {each.index for each in previews} == {0, 1}
            assert all(each.pixels.shape == (24, 32, 3) for each in previews)
            assert len({each.pixels.tobytes() for each in previews}) == len(previews)
    finally:
        engine.stop()
