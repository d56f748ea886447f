"""A pool that generates one coloured image for each seed, step by step, as a test allows."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from io import BytesIO
from typing import Any

from numpy import bool_, uint8
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from serve.events import Event, Finished, ImageFinished, ImageFlagged, Preview, Started, StepDone
from serve.generation_plan import GenerationPlan
from serve.lora.resolved_lora import ResolvedLora


class DrawingPool:
    """`generate` waits for the events `may_start` and `may_finish`; the second one is after half of the steps."""

    def __init__(self, flagged: Sequence[int] = ()) -> None:
        self.plans: list[GenerationPlan] = []
        self.images: list[tuple[NDArray[uint8] | None, NDArray[uint8] | None]] = []
        """The input image and the mask of each call."""
        self.may_start = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.may_start.set()
        self.may_finish.set()
        self.stop_count = 0
        self._flagged = flagged

    def edit(self, call: int = -1) -> tuple[NDArray[uint8], NDArray[bool_]]:
        """The input image of a call, and a mask that is true where it is repainted."""
        image, mask = self.images[call]
        assert image is not None
        assert mask is not None
        return image, mask.reshape(*mask.shape[:2], -1)[:, :, 0] >= 128

    async def generate(
        self,
        plan: GenerationPlan,
        image: NDArray[uint8] | None,
        mask: NDArray[uint8] | None,
        loras: Sequence[ResolvedLora[Any]],
        log_id: str,
    ) -> AsyncGenerator[Event, None]:
        self.plans.append(plan)
        self.images.append((image, mask))
        try:
            await self.may_start.wait()
            yield Started()
            for step in range(1, plan.steps + 1):
                for index, seed in enumerate(plan.seeds):
                    yield StepDone(index, step, plan.steps)
                    if plan.previews and step % (plan.steps // (plan.previews + 1)) == 0 and step < plan.steps:
                        yield Preview(index, step, plan.steps, draw((32, 32), seed))
                if step == plan.steps // 2:
                    await self.may_finish.wait()
            for index, seed in enumerate(plan.seeds):
                content = draw(plan.size or (256, 256), seed)
                yield ImageFlagged(index) if index in self._flagged else ImageFinished(index, content)
            yield Finished({"queue": 12.0, "text": 140.0, "denoise": 2400.0, "decode": 610.0}, 1.5, "float32")
        finally:
            self.stop_count += 1


def draw(size: tuple[int, int], seed: int) -> bytes:
    """A webp file whose colours depend on the seed."""
    hue = seed * 47 % 360
    image = Image.new("RGB", size, f"hsl({hue}, 45%, 88%)")
    width, height = size
    canvas = ImageDraw.Draw(image)
    canvas.ellipse((width * 0.25, height * 0.2, width * 0.75, height * 0.7), fill=f"hsl({hue}, 60%, 55%)")
    canvas.rectangle((0, height * 0.78, width, height), fill=f"hsl({(hue + 160) % 360}, 30%, 45%)")
    file = BytesIO()
    image.save(file, "WEBP")
    return file.getvalue()
