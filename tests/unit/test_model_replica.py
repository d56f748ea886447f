"""A model replica without Ray: events, flagged images, cancellation, health and LoRA weights."""

import asyncio
import io
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from ray.exceptions import ObjectLostError, OwnerDiedError

from serve import model_replica, owner_death, telemetry
from serve.engine.checkpoint_files import read_geometry
from serve.errors import EngineFailed, LorasMissing
from serve.events import Alive, Event, Finished, ImageFinished, ImageFlagged, Preview, Started, StepDone
from serve.generation_plan import GenerationPlan, PlannedLora, make_plan
from serve.inputs import validate_inputs
from serve.lora.resolved_lora import CacheHandle, LoraMetadata, ResolvedLora
from serve.lora.weights import Block, LoraWeights, LowRank, pack
from serve.model_replica import ModelReplica
from serve.model_specs import ImageArray
from serve.replica_metrics import ReplicaMetrics
from serve.settings import SafetySettings, Settings
from tests.logs import Logs
from tests.metrics import RecordedMetrics
from tests.spans import Spans

POOL = "schnell"


@pytest.fixture(scope="module")
def replica() -> Iterator[ModelReplica]:
    replica = ModelReplica(settings(), POOL)
    yield replica
    replica._engine.stop()


def settings() -> Settings:
    return Settings.model_validate({"pools": {POOL: {"model": "schnell", "warmup_sizes": [(64, 64)]}}})


def plan(steps: int = 2, images: int = 2, checked: bool = True) -> GenerationPlan:
    raw = {"prompt": "a boat", "model": "schnell", "num_inference_steps": steps, "num_outputs": images, "seed": 1}
    inputs, _ = validate_inputs({**raw, "disable_safety_checker": not checked}, 100)
    return make_plan(inputs, Settings(), 0).model_copy(update={"size": (96, 64)})


class FlagsFirstImage:
    """A safety checker that flags the first image that it checks."""

    on_device = False

    def __init__(self) -> None:
        self.check_count = 0

    def is_flagged(self, image: ImageArray) -> bool:
        self.check_count += 1
        return self.check_count == 1


async def test_events_are_started_steps_images_and_finished(replica: ModelReplica) -> None:
    events = [event async for event in replica.generate(plan())]
    assert isinstance(events[0], Alive)
    assert isinstance(events[1], Started)
    assert [event for event in events if isinstance(event, StepDone)] == [
        StepDone(image, step, 2) for step in (1, 2) for image in (0, 1)
    ]
    contents = {event.index: event.content for event in events if isinstance(event, ImageFinished)}
    assert set(contents) == {0, 1}
    with Image.open(io.BytesIO(contents[0])) as image:
        assert (image.size, image.format) == ((96, 64), "WEBP")
    assert isinstance(events[-1], Finished)
    assert set(events[-1].stages_ms) == {"queue", "text", "denoise", "decode", "safety", "encode"}
    assert events[-1].mean_batch == 2
    assert events[-1].compute_dtype in ("bfloat16", "float32")


async def test_spans_of_a_request_are_children_of_the_caller(replica: ModelReplica, spans: Spans) -> None:
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    assert [event async for event in replica.generate(plan(images=2), trace=trace)]
    generate = spans.one("generate")
    assert generate.parent is not None
    assert generate.parent.span_id == int("b" * 16, 16)
    assert spans.parents() == {"generate": None} | dict.fromkeys(
        ("queue", "text", "denoise", "decode", "safety", "encode"), "generate"
    )
    # One for the steps of all images, one for each image that is encoded.
    assert sorted(span.name for span in spans.all).count("denoise") == 1
    assert sorted(span.name for span in spans.all).count("encode") == 2
    assert all(span.start_time <= span.end_time for span in spans.all if span.start_time and span.end_time)


async def test_span_of_a_failed_request_has_the_class_of_its_error(replica: ModelReplica, spans: Spans) -> None:
    async def read() -> Block:
        raise OwnerDiedError("0" * 40, None, "")

    with pytest.raises(LorasMissing):
        await generate_one(replica, plan_with_lora(1.0), resolved_lora(read()))
    assert (spans.one("generate").attributes or {})["error.type"] == "LorasMissing"


def start_replica(monkeypatch: pytest.MonkeyPatch, compile_parts: list[str]) -> None:
    """Starts a replica without warm-up, and stops its engine."""
    monkeypatch.setattr("serve.engine.engine.Engine.warm_up", lambda *_: None)
    monkeypatch.setattr(model_replica, "use_serve_log", lambda *_: None)
    pool = {"model": "schnell", "warmup_sizes": [], "compile": compile_parts}
    ModelReplica(Settings.model_validate({"pools": {POOL: pool}}), POOL)._engine.stop()


@pytest.mark.parametrize("parts", [["transformer"], []])
def test_compile_cache_is_used_only_if_something_is_compiled(parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[Settings] = []
    monkeypatch.setattr(model_replica, "use_compile_cache", caches.append)
    start_replica(monkeypatch, parts)
    assert len(caches) == bool(parts)


def test_start_logs_the_number_of_compiled_graphs(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    model_replica.log.setLevel(logging.INFO)
    start_replica(monkeypatch, [])
    model_replica.log.setLevel(logging.NOTSET)
    (message,) = [record.getMessage() for record in logs.records if "is ready" in record.getMessage()]
    assert POOL in message
    assert "compiled graphs: " in message


async def test_log_names_the_prediction_when_it_arrives_and_ends(replica: ModelReplica, logs: Logs) -> None:
    model_replica.log.setLevel(logging.INFO)
    finished, stopped = "prediction a (request b)", "prediction c (request d)"
    assert [event async for event in replica.generate(plan(), log_id=finished)]
    events = replica.generate(plan(steps=50), log_id=stopped)
    async for event in events:
        if isinstance(event, StepDone):
            break
    await events.aclose()
    model_replica.log.setLevel(logging.NOTSET)
    lines = [record.getMessage() for record in logs.records if record.name == model_replica.log.name]
    assert [line.partition(": ")[0] for line in lines] == [finished, finished, stopped, stopped]
    assert ("finished" in lines[1], "stopped" in lines[3]) == (True, True)


async def test_flagged_image_is_withheld(replica: ModelReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "_checker", FlagsFirstImage())
    events = [event async for event in replica.generate(plan())]
    assert len([event for event in events if isinstance(event, ImageFlagged)]) == 1
    assert len([event for event in events if isinstance(event, ImageFinished)]) == 1


async def test_plan_without_safety_check_does_not_call_the_checker(
    replica: ModelReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = FlagsFirstImage()
    monkeypatch.setattr(replica, "_checker", checker)
    events = [event async for event in replica.generate(plan(checked=False))]
    assert checker.check_count == 0
    assert not [event for event in events if isinstance(event, ImageFlagged)]


async def test_checker_on_the_device_runs_in_the_thread_of_the_engine(
    replica: ModelReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()

    class OnDevice(FlagsFirstImage):
        on_device = True

        def is_flagged(self, image: ImageArray) -> bool:
            threads.add(threading.current_thread().name)
            return False

    monkeypatch.setattr(replica, "_checker", OnDevice())
    assert [event async for event in replica.generate(plan())]
    assert threads == {"engine"}


def with_previews(plan: GenerationPlan, previews: int = 3) -> GenerationPlan:
    return plan.model_copy(update={"previews": previews})


async def test_previews_are_small_images_between_the_steps(replica: ModelReplica) -> None:
    events = [event async for event in replica.generate(with_previews(plan(steps=4)))]
    previews = [event for event in events if isinstance(event, Preview)]
    assert {(each.index, each.total) for each in previews} == {(0, 4), (1, 4)}
    assert {each.step for each in previews} <= {1, 2, 3}
    with Image.open(io.BytesIO(previews[0].content)) as image:
        assert (image.size, image.format) == ((12, 8), "WEBP")
    finished = [event for event in events if isinstance(event, ImageFinished)]
    without = [event async for event in replica.generate(plan(steps=4)) if isinstance(event, ImageFinished)]
    assert sorted(finished, key=lambda each: each.index) == sorted(without, key=lambda each: each.index)


class Checker:
    """Flags previews, which are smaller than images."""

    def __init__(self, on_device: bool = False) -> None:
        self.on_device = on_device

    def is_flagged(self, image: ImageArray) -> bool:
        return bool(image.shape[0] < 64)


@pytest.mark.parametrize(
    ("checker", "checked", "safety", "has_previews"),
    [
        (Checker(), True, {}, False),
        (Checker(), False, {}, True),
        (Checker(), True, {"checker": "none"}, True),
        (FlagsFirstImage(), False, {"checks_previews": False}, True),
        (FlagsFirstImage(), True, {"checks_previews": False}, False),
        (Checker(on_device=True), True, {}, False),
        (Checker(on_device=True), False, {}, True),
    ],
)
async def test_previews_are_not_sent_unless_the_checker_passes_them(
    replica: ModelReplica,
    monkeypatch: pytest.MonkeyPatch,
    checker: Any,
    checked: bool,
    safety: dict[str, Any],
    has_previews: bool,
) -> None:
    monkeypatch.setattr(replica, "_checker", checker)
    monkeypatch.setattr(replica, "_safety", SafetySettings.model_validate(safety))
    events = [event async for event in replica.generate(with_previews(plan(steps=4, checked=checked)))]
    assert any(isinstance(event, Preview) for event in events) == has_previews


@pytest.mark.parametrize("method", ["closed", "cancelled"])
async def test_closing_or_cancelling_returns_after_the_engine_dropped_the_request(
    replica: ModelReplica, method: str
) -> None:
    events = replica.generate(plan(steps=50))
    async for event in events:
        if isinstance(event, StepDone):
            break
    if method == "closed":
        await events.aclose()
    else:
        consumer = asyncio.ensure_future(consume(events))
        await asyncio.sleep(0)
        consumer.cancel()
        await asyncio.wait([consumer])
    stats = replica.stats()
    assert stats["images"] == 0
    await asyncio.sleep(0.1)
    assert replica.stats()["image_steps"] == stats["image_steps"]


async def test_death_of_the_caller_ends_the_work(replica: ModelReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_death, "CHECK_PERIOD_S", 0)

    async def read() -> None:
        raise OwnerDiedError("0" * 40, None, "")

    events = replica.generate(plan(steps=50), owner=[read()])
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(consume(events), 30)
    assert replica.stats()["images"] == 0


async def consume(events: AsyncGenerator[Event, None]) -> None:
    async for _ in events:
        pass


async def test_metrics_are_those_of_the_engine(replica: ModelReplica, metrics: RecordedMetrics) -> None:
    replica_metrics = ReplicaMetrics(replica._engine, POOL)
    await consume(replica.generate(plan(steps=3, images=2)))
    replica_metrics.update()
    assert metrics.value(telemetry.STEPS, POOL) == 6
    assert len(metrics.observed(telemetry.STEP_SECONDS, POOL, "0.25", "2")) == 3
    assert metrics.value(telemetry.LORA_SLOTS, POOL, "total") > 0


def test_start_is_measured(metrics: RecordedMetrics) -> None:
    replica = ModelReplica(settings(), POOL)
    replica._engine.stop()
    stages = metrics.values[telemetry.START_SECONDS.name]
    assert {stage for _, stage in stages} == {"imports", "checkpoint", "safety checker", "warm-up"}
    assert metrics.values[telemetry.STEPS.name] == {(POOL,): 0}


def test_idle_replica_is_healthy(replica: ModelReplica) -> None:
    replica.check_health()


def test_replica_with_a_stopped_engine_is_unhealthy() -> None:
    replica = ModelReplica(settings(), POOL)
    replica._engine.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        replica.check_health()


LINEAR = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def block(replica: ModelReplica) -> Block:
    """The weights of a LoRA for one linear layer of the replica's model."""
    generator = torch.Generator().manual_seed(1)
    outputs, inputs = read_geometry(Settings().models["schnell"], None).transformer_layers()[LINEAR]
    down, up = (torch.randn(shape, generator=generator) for shape in ((4, inputs), (outputs, 4)))
    return pack(LoraWeights({LINEAR: LowRank(down, up)}, {}))


def resolved_lora(block: Awaitable[Block]) -> ResolvedLora[Any]:
    """A LoRA with the weights key "lora" whose handle returns `block` when awaited, as a Ray reference does."""
    return ResolvedLora(LoraMetadata("lora", 0, 4), CacheHandle((block,), "1"), "memory")


def plan_with_lora(scale: float) -> GenerationPlan:
    lora = PlannedLora(reference_key="reference", weights_key="lora", scale=scale)
    return plan(images=1).model_copy(update={"loras": (lora,)})


async def generate_one(replica: ModelReplica, plan: GenerationPlan, *loras: ResolvedLora[Any]) -> bytes:
    """The encoded image of a plan with one image."""
    events = [event async for event in replica.generate(plan, loras=loras)]
    (content,) = (event.content for event in events if isinstance(event, ImageFinished))
    return content


async def test_lora_changes_only_the_images_of_its_own_request(replica: ModelReplica, block: Block) -> None:
    async def read() -> Block:
        return block

    without_lora = await generate_one(replica, plan(images=1))
    assert await generate_one(replica, plan_with_lora(1.0), resolved_lora(read())) != without_lora
    assert await generate_one(replica, plan_with_lora(0.0), resolved_lora(read())) == without_lora
    assert await generate_one(replica, plan(images=1)) == without_lora


READ_ERRORS = [error_type("0" * 40, None, "") for error_type in (OwnerDiedError, ObjectLostError)]


@pytest.mark.parametrize("read_error", [*READ_ERRORS, None], ids=["owner died", "object lost", "timeout"])
async def test_unreadable_weights_raise_loras_missing(
    replica: ModelReplica, monkeypatch: pytest.MonkeyPatch, read_error: ObjectLostError | None
) -> None:
    monkeypatch.setattr(model_replica, "LORA_READ_TIMEOUT_S", 0.01)

    async def read() -> Block:
        if read_error is not None:
            raise read_error
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(LorasMissing) as caught:
        await generate_one(replica, plan_with_lora(1.0), resolved_lora(read()))
    assert caught.value.keys == ("lora",)
    assert replica.stats()["images"] == 0
