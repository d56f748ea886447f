"""One worker of a pool: a plan, pictures and LoRAs in, events out. A plain class, which Ray Serve makes replicas of.

Owns an engine, and what is done to a picture once it has left the device: the safety check and the encoding, off the
event loop and off the engine's thread. Knows nothing of HTTP, records or other replicas.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

from ray.exceptions import RayError

from serve.engine.request import Completed, Failed, GenerationRequest, ImageArray, ImageReady, MaskArray
from serve.errors import LorasMissing
from serve.events import Event, Finished, ImageFinished, ImageFlagged, Started, StepDone
from serve.lora.reference import ResolvedLora
from serve.lora_cache import BlockRef
from serve.media.encode import encode_image
from serve.plan import Plan
from serve.settings import Settings, read_secrets

if TYPE_CHECKING:
    from serve.lora.weights import LoraWeights

FINISHING_THREADS = 2
LORA_READ_TIMEOUT_S = 60.0
"""For a LoRA that must first come from the memory of another node."""

log = logging.getLogger(__name__)


class ModelReplica:
    """Ready when its constructor returns: the checkpoint is loaded and every size of the pool was drawn once."""

    def __init__(self, settings: Settings, pool: str) -> None:
        # Imported where models are: who only deploys this starts seconds sooner without torch.
        from serve.engine.checkpoint import load_checkpoint
        from serve.engine.engine import Engine
        from serve.engine.safety_checker import build_checker

        row = settings.pools[pool]
        token = read_secrets().hf_token
        hf_token = token.get_secret_value() if token else None
        self._checker = build_checker(settings.safety, hf_token)
        self._finishers = ThreadPoolExecutor(FINISHING_THREADS, thread_name_prefix="finish")
        checkpoint = load_checkpoint(settings.models[row.model], row, hf_token)
        self._engine = Engine(checkpoint, row)
        self._engine.start()
        self._engine.warm_up(row.warmup_sizes)

    async def generate(
        self,
        plan: Plan,
        picture: ImageArray | None = None,
        mask: MaskArray | None = None,
        loras: Sequence[ResolvedLora[BlockRef]] = (),
    ) -> AsyncGenerator[Event, None]:
        """The events of one prediction; `Finished` is the last.

        `picture` is uint8 [height, width, 3] and `mask` uint8 [height, width] (white repaints), both of the plan's
        size; `loras` are all that the plan names. Closing the generator, or cancelling who waits for it, ends the work
        within one denoising step; the caller's slot is kept until the engine has let go of it. Raises `ServiceError`.
        """
        course = self._engine.stream(GenerationRequest(plan, picture, mask, await self._carry(loras)))
        finishing: list[asyncio.Task[Event]] = []
        spent_ms: dict[str, float] = {}
        try:
            async for event in course:
                match event:
                    case ImageReady():
                        finishing.append(asyncio.create_task(self._finish(event, plan, spent_ms)))
                    case Completed():
                        for ready in asyncio.as_completed(finishing):
                            yield await ready
                        yield Finished(event.stages_ms | spent_ms, event.mean_batch)
                    case Failed():
                        raise event.error
                    case Started() | StepDone():
                        yield event
        finally:
            for task in finishing:
                task.cancel()
            await course.cancel()

    async def _carry(self, loras: Sequence[ResolvedLora[BlockRef]]) -> "dict[str, LoraWeights]":
        """The weights, also of those that lie on the device, which may let go of them until the job's turn comes.

        A block on this node is read where it lies. Raises `LorasMissing` for what cannot be read: its owner died.
        """
        from serve.lora.weights import unpack

        carried = {}
        for lora in loras:
            key, (block,) = lora.metadata.key, lora.handle.block
            try:
                async with asyncio.timeout(LORA_READ_TIMEOUT_S):
                    carried[key] = unpack(await block)
            except (RayError, TimeoutError) as error:
                log.warning("the weights of a LoRA could not be read: %s", type(error).__name__)
                raise LorasMissing((key,)) from None
        return carried

    async def _finish(self, pixels: ImageReady, plan: Plan, spent_ms: dict[str, float]) -> ImageFinished | ImageFlagged:
        """The picture as it leaves the replica; what it took is added to `spent_ms`."""
        told, took_ms = await asyncio.get_running_loop().run_in_executor(
            self._finishers, self._check_and_encode, pixels, plan
        )
        for stage, milliseconds in took_ms.items():
            spent_ms[stage] = spent_ms.get(stage, 0.0) + milliseconds
        return told

    def _check_and_encode(
        self, pixels: ImageReady, plan: Plan
    ) -> tuple[ImageFinished | ImageFlagged, dict[str, float]]:
        begun = time.perf_counter()
        picture = pixels.to_host()
        flagged = plan.check_safety and self._flag(picture)
        checked = time.perf_counter()
        took_ms = {"safety": 1000 * (checked - begun)}
        if flagged:
            return ImageFlagged(pixels.image), took_ms
        content, media_type = encode_image(picture, plan.output_format, plan.output_quality)
        took_ms["encode"] = 1000 * (time.perf_counter() - checked)
        return ImageFinished(pixels.image, content, media_type), took_ms

    def _flag(self, picture: ImageArray) -> bool:
        """Asks the checker, which on a device must share the engine's thread."""
        if self._checker.on_device:
            return self._engine.run_on_device(lambda: self._checker.is_flagged(picture)).result()
        return self._checker.is_flagged(picture)

    def stats(self) -> dict[str, float]:
        """The engine's counters since it started."""
        counters = self._engine.stats
        return {**asdict(counters), "mean_batch": counters.mean_batch}

    def check_health(self) -> None:
        """Raises when the engine's thread has died, or hangs in one piece of work."""
        pulse = self._engine.health
        if not pulse.healthy:
            raise RuntimeError(f"the engine is stuck: {pulse}")
