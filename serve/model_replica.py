"""A replica of a pool: generates the images of predictions on one device. Ray Serve deploys this class."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING

from ray.exceptions import RayError

from serve import tracing
from serve.engine.request import (
    Completed,
    EngineEvent,
    Failed,
    GenerationRequest,
    ImageReady,
    Interval,
    LoraRequest,
    PreviewReady,
)
from serve.errors import EngineFailed, LorasMissing
from serve.events import ALIVE_PERIOD_S, Alive, Event, Finished, ImageFinished, ImageFlagged, Preview, Started, StepDone
from serve.generation_plan import GenerationPlan
from serve.logs import prediction_fields
from serve.lora.resolved_lora import ResolvedLora
from serve.lora_cache_actor import BlockRef
from serve.media.image_codec import encode_image
from serve.model_specs import ImageArray, MaskArray
from serve.owner_death import Owner, OwnerReference
from serve.preview_encoder import PreviewEncoder
from serve.ray_logs import use_serve_log
from serve.ray_metrics import use_ray_metrics
from serve.replica_metrics import ReplicaMetrics
from serve.settings import Settings, read_secrets, use_compile_cache
from serve.stage_times import StageTimes

if TYPE_CHECKING:
    from serve.lora.weights import LoraWeights

POSTPROCESSING_THREADS = 2
LORA_READ_TIMEOUT_S = 60.0
"""Long enough to copy a LoRA from another node."""
CALLER_DIED = "the process that requested these images has died"

log = logging.getLogger(__name__)


class ModelReplica:
    """Ready when its constructor returns: the checkpoint is loaded and every warm-up size was generated once."""

    def __init__(self, settings: Settings, pool: str) -> None:
        use_serve_log(settings.log_format, {"pool": pool})
        exports_metrics = use_ray_metrics()
        tracing.use_tracing()
        times = StageTimes()
        pool_settings = settings.pools[pool]
        if pool_settings.compiled_parts:
            use_compile_cache(settings)
        # Imported here, so that processes which only deploy this class start seconds sooner, without torch.
        from serve.engine.checkpoint import load_checkpoint
        from serve.engine.compilation import cached_graphs, compiled_graphs
        from serve.engine.engine import Engine
        from serve.engine.safety_checker import build_checker

        times.end("imports")
        token = read_secrets().hf_token
        hf_token = token.get_secret_value() if token else None
        checkpoint = load_checkpoint(settings.models[pool_settings.model], pool_settings, hf_token)
        times.end("checkpoint")
        self._checker = build_checker(settings.safety, hf_token)
        self._safety = settings.safety
        self._postprocessors = ThreadPoolExecutor(POSTPROCESSING_THREADS, thread_name_prefix="postprocess")
        times.end("safety checker")
        self._engine = Engine(checkpoint, pool_settings)
        self._engine.start()
        self._engine.warm_up(pool_settings.warmup_sizes)
        times.end("warm-up")
        metrics = ReplicaMetrics(self._engine, pool)
        metrics.record_start(times.seconds)
        if exports_metrics:
            metrics.start()
        log.info(
            "replica of %s is ready: %s; compiled graphs: %d, of which %d were in the cache",
            pool,
            times,
            compiled_graphs(),
            cached_graphs(),
        )

    async def generate(
        self,
        plan: GenerationPlan,
        image: ImageArray | None = None,
        mask: MaskArray | None = None,
        loras: Sequence[ResolvedLora[BlockRef]] = (),
        log_id: str = "",
        owner: OwnerReference = (),
        log_fields: Mapping[str, str] = {},
        trace: Mapping[str, str] = {},
    ) -> AsyncGenerator[Event, None]:
        """The events of one prediction; `Finished` is the last.

        `image` is uint8 [height, width, 3] and `mask` uint8 [height, width] (white is repainted), both of the plan's
        size; `loras` are all LoRAs of the plan. Closing the generator, or cancelling its consumer, ends the work within
        one denoising step; the caller's slot is held until the engine has dropped the request. Raises `ServiceError`.
        Log messages about the prediction begin with `log_id`. If the process of `owner` has died, the work ends too:
        nobody can collect it, and another process takes the prediction up. JSON messages have `log_fields`,
        and spans are children of that in `trace`.
        """
        prediction_fields.set(log_fields)
        tracing.continue_from(trace)
        yield Alive()
        log.info("%s: arrived, %d images of %s in %d steps", log_id, len(plan.seeds), plan.size, plan.steps)
        checker = self._checker if plan.check_safety and self._safety.checker != "none" else None
        previews = PreviewEncoder(self._postprocessors, checker, self._safety.checks_previews)
        plan = plan if previews.is_allowed else plan.model_copy(update={"previews": 0})
        with tracing.detached_span("generate") as span:
            request = _engine_request(plan, image, mask, await self._read_weights(loras))
            async with aclosing(self._generate(plan, request, previews, log_id, Owner(owner), span)) as events:
                async for event in events:
                    yield event

    async def _generate(
        self,
        plan: GenerationPlan,
        request: GenerationRequest,
        previews: PreviewEncoder,
        log_id: str,
        caller: Owner,
        span: tracing.Span,
    ) -> AsyncGenerator[Event, None]:
        events = self._engine.stream(request)
        outcome = "stopped"
        postprocessing: list[asyncio.Task[Event]] = []
        stages_ms: dict[str, float] = {}
        try:
            async with aclosing(_with_signs_of_life(events)) as living:
                async for event in living:
                    if await caller.is_dead():
                        outcome = "stopped, because its caller has died"
                        raise EngineFailed(CALLER_DIED)
                    match event:
                        case ImageReady():
                            postprocessing.append(asyncio.create_task(self._postprocess(event, plan, stages_ms, span)))
                        case PreviewReady():
                            previews.start(event, events.add)
                        case Completed():
                            for finished in asyncio.as_completed(postprocessing):
                                yield await finished
                            outcome = "finished"
                            _record(event.intervals_s, span)
                            yield Finished(event.stages_ms | stages_ms, event.mean_batch, self._engine.compute_dtype)
                        case Failed():
                            outcome = "failed"
                            raise event.error
                        case Alive() | Started() | StepDone() | Preview():
                            yield event
        finally:
            previews.cancel()
            for task in postprocessing:
                task.cancel()
            await events.cancel()
            log.info("%s: %s", log_id, outcome)

    async def _read_weights(self, loras: Sequence[ResolvedLora[BlockRef]]) -> "dict[str, LoraWeights]":
        """The weights of all LoRAs by key, resident ones included: they may be evicted before the request is scheduled.

        A block on this node is read in place. Raises `LorasMissing` if a block is lost or not read in time.
        """
        from serve.lora.weights import unpack

        weights = {}
        for lora in loras:
            key, (block,) = lora.metadata.key, lora.handle.block
            try:
                async with asyncio.timeout(LORA_READ_TIMEOUT_S):
                    weights[key] = unpack(await block)
            except (RayError, TimeoutError) as error:
                log.warning("the weights of a LoRA could not be read: %s", type(error).__name__)
                raise LorasMissing((key,)) from None
        return weights

    async def _postprocess(
        self, ready: ImageReady, plan: GenerationPlan, stages_ms: dict[str, float], span: tracing.Span
    ) -> ImageFinished | ImageFlagged:
        """Checks and encodes an image in a thread; adds the times to `stages_ms` and `span`."""
        event, intervals_s = await asyncio.get_running_loop().run_in_executor(
            self._postprocessors, self._check_and_encode, ready, plan
        )
        for stage, (start_s, end_s) in intervals_s.items():
            stages_ms[stage] = stages_ms.get(stage, 0.0) + 1000 * (end_s - start_s)
        _record(intervals_s, span)
        return event

    def _check_and_encode(
        self, ready: ImageReady, plan: GenerationPlan
    ) -> tuple[ImageFinished | ImageFlagged, dict[str, Interval]]:
        start_s = time.monotonic()
        array = ready.to_host()
        flagged = plan.check_safety and self._is_flagged(array)
        checked_s = time.monotonic()
        intervals_s = {"safety": (start_s, checked_s)}
        if flagged:
            return ImageFlagged(ready.index), intervals_s
        content = encode_image(array, plan.output_format, plan.output_quality)
        intervals_s["encode"] = checked_s, time.monotonic()
        return ImageFinished(ready.index, content), intervals_s

    def _is_flagged(self, array: ImageArray) -> bool:
        """Calls the safety checker; one on a device must share the engine's thread."""
        if self._checker.on_device:
            return self._engine.run_on_device(lambda: self._checker.is_flagged(array)).result()
        return self._checker.is_flagged(array)

    def stats(self) -> dict[str, float]:
        """The engine's statistics since it started."""
        stats = self._engine.stats
        return {**asdict(stats), "mean_batch": stats.mean_batch}

    def compute_dtype(self) -> str:
        """The dtype in which the transformer computes: `bfloat16`, `float16` or `float32`."""
        return self._engine.compute_dtype

    def check_health(self) -> None:
        """Raises RuntimeError if the engine's thread has died or hangs."""
        health = self._engine.health
        if not health.healthy:
            raise RuntimeError(f"the engine has stopped or hangs: {health}")


async def _with_signs_of_life(
    events: AsyncIterable[EngineEvent | Preview],
) -> AsyncGenerator[EngineEvent | Preview | Alive, None]:
    """The events, and `Alive` whenever none comes for `ALIVE_PERIOD_S`."""
    iterator = aiter(events)
    upcoming: asyncio.Future[EngineEvent | Preview | None] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(iterator, None))
            done, _ = await asyncio.wait({upcoming}, timeout=ALIVE_PERIOD_S)
            if not done:
                yield Alive()
                continue
            event, upcoming = upcoming.result(), None
            if event is None:
                return
            yield event
    finally:
        if upcoming is not None:
            upcoming.cancel()


def _record(intervals_s: Mapping[str, Interval], span: tracing.Span) -> None:
    """Adds the stages to the span as children."""
    for stage, (start_s, end_s) in intervals_s.items():
        span.record(stage, start_s, end_s)


def _engine_request(
    plan: GenerationPlan, image: ImageArray | None, mask: MaskArray | None, weights: "dict[str, LoraWeights]"
) -> GenerationRequest:
    assert plan.size is not None, "the plan is not complete"
    return GenerationRequest(
        prompt=plan.prompt,
        size=plan.size,
        steps=plan.steps,
        seeds=plan.seeds,
        guidance=plan.guidance,
        strength=plan.strength,
        image=image,
        mask=mask,
        previews=plan.previews,
        loras=tuple(LoraRequest(lora.weights_key, lora.scale) for lora in plan.loras if lora.weights_key is not None),
        lora_weights=weights,
    )
