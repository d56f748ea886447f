"""One replica without Ray: the events of a prediction, withheld pictures, and callers that leave."""

import asyncio
import io
import threading
from collections.abc import AsyncGenerator, Awaitable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from ray.exceptions import ObjectLostError, OwnerDiedError

from serve import model_replica
from serve.engine.checkpoint_files import read_geometry
from serve.errors import LorasMissing
from serve.events import Event, Finished, ImageFinished, ImageFlagged, Started, StepDone
from serve.generation_plan import GenerationPlan, PlannedLora, make_plan
from serve.inputs import validate_inputs
from serve.lora.reference import CacheHandle, LoraMetadata, ResolvedLora
from serve.lora.weights import Block, LoraWeights, LowRank, pack
from serve.model_replica import ModelReplica
from serve.model_specs import ImageArray
from serve.settings import Settings

POOL = "schnell"


@pytest.fixture(scope="module")
def replica() -> Iterator[ModelReplica]:
    made = ModelReplica(settings(), POOL)
    yield made
    made._engine.stop()


def settings() -> Settings:
    row = {"model": "schnell", "warmup_sizes": [(64, 64)]}
    return Settings.model_validate({"pools": {POOL: row}})


def plan(steps: int = 2, images: int = 2, checked: bool = True) -> GenerationPlan:
    raw = {"prompt": "a boat", "model": "schnell", "num_inference_steps": steps, "num_outputs": images, "seed": 1}
    inputs, _ = validate_inputs({**raw, "disable_safety_checker": not checked}, 100)
    return make_plan(inputs, Settings(), 0).model_copy(update={"size": (96, 64)})


class FlagsImage0:
    """A checker that withholds the first picture it sees."""

    on_device = False

    def __init__(self) -> None:
        self.seen = 0

    def is_flagged(self, pixels: ImageArray) -> bool:
        self.seen += 1
        return self.seen == 1


async def test_a_prediction_is_told_from_its_first_step_to_its_files(replica: ModelReplica) -> None:
    events = [event async for event in replica.generate(plan())]
    assert isinstance(events[0], Started)
    assert [event for event in events if isinstance(event, StepDone)] == [
        StepDone(image, step, 2) for step in (1, 2) for image in (0, 1)
    ]
    drawn = {event.image: event for event in events if isinstance(event, ImageFinished)}
    assert set(drawn) == {0, 1}
    with Image.open(io.BytesIO(drawn[0].content)) as picture:
        assert (picture.size, picture.format) == ((96, 64), "WEBP")
    assert isinstance(events[-1], Finished)
    assert set(events[-1].stages_ms) == {"queue", "text", "denoise", "decode", "safety", "encode"}
    assert events[-1].mean_batch == 2


async def test_a_flagged_picture_is_withheld_and_its_index_kept(
    replica: ModelReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_checker", FlagsImage0())
    events = [event async for event in replica.generate(plan())]
    assert len([event for event in events if isinstance(event, ImageFlagged)]) == 1
    assert len([event for event in events if isinstance(event, ImageFinished)]) == 1


async def test_an_unchecked_plan_is_not_shown_to_the_checker(
    replica: ModelReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = FlagsImage0()
    monkeypatch.setattr(replica, "_checker", checker)
    events = [event async for event in replica.generate(plan(checked=False))]
    assert checker.seen == 0
    assert not [event for event in events if isinstance(event, ImageFlagged)]


async def test_a_checker_on_the_device_is_asked_on_the_engines_thread(
    replica: ModelReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()

    class OnDevice(FlagsImage0):
        on_device = True

        def is_flagged(self, pixels: ImageArray) -> bool:
            threads.add(threading.current_thread().name)
            return False

    monkeypatch.setattr(replica, "_checker", OnDevice())
    assert [event async for event in replica.generate(plan())]
    assert threads == {"engine"}


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_a_caller_who_leaves_frees_the_engine_before_the_slot(replica: ModelReplica, how: str) -> None:
    events = replica.generate(plan(steps=50))
    async for event in events:
        if isinstance(event, StepDone):
            break
    if how == "closed":
        await events.aclose()
    else:
        waiting = asyncio.ensure_future(_drain(events))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    stats = replica.stats()
    assert stats["images"] == 0
    await asyncio.sleep(0.1)
    assert replica.stats()["image_steps"] == stats["image_steps"]


async def _drain(events: AsyncGenerator[Event, None]) -> None:
    async for _ in events:
        pass


def test_a_replica_with_nothing_to_do_is_healthy(replica: ModelReplica) -> None:
    replica.check_health()


def test_a_replica_whose_engine_has_died_is_not() -> None:
    replica = ModelReplica(settings(), POOL)
    replica._engine.stop()
    with pytest.raises(RuntimeError, match="stuck"):
        replica.check_health()


LINEAR = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def ink(replica: ModelReplica) -> Block:
    """A LoRA for one linear of the replica's model."""
    generator = torch.Generator().manual_seed(1)
    outputs, inputs = read_geometry(Settings().models["schnell"], None).transformer_layers()[LINEAR]
    down, up = (torch.randn(shape, generator=generator) for shape in ((4, inputs), (outputs, 4)))
    return pack(LoraWeights({LINEAR: LowRank(down, up)}, {}))


def at_hand(reading: Awaitable[Block]) -> ResolvedLora[Any]:
    """A LoRA whose block is read by waiting for `reading`, as for Ray's references."""
    return ResolvedLora(LoraMetadata("ink", 0, 4), CacheHandle((reading,), "1"), "memory")


def with_ink(scale: float) -> GenerationPlan:
    return plan(images=1).model_copy(
        update={"loras": (PlannedLora(reference_key="reference", weights_key="ink", scale=scale),)}
    )


async def drawn(replica: ModelReplica, asked: GenerationPlan, *loras: ResolvedLora[Any]) -> bytes:
    events = [event async for event in replica.generate(asked, loras=loras)]
    (picture,) = (event.content for event in events if isinstance(event, ImageFinished))
    return picture


async def test_a_lora_is_read_and_drawn_with_for_its_own_request_only(replica: ModelReplica, ink: Block) -> None:
    async def read() -> Block:
        return ink

    plain = await drawn(replica, plan(images=1))
    assert await drawn(replica, with_ink(1.0), at_hand(read())) != plain
    assert await drawn(replica, with_ink(0.0), at_hand(read())) == plain
    assert await drawn(replica, plan(images=1)) == plain


LOSSES = [kind("0" * 40, None, "") for kind in (OwnerDiedError, ObjectLostError)]


@pytest.mark.parametrize("loss", [*LOSSES, None], ids=["its owner died", "it is lost", "it never comes"])
async def test_weights_that_cannot_be_read_are_named(
    replica: ModelReplica, monkeypatch: pytest.MonkeyPatch, loss: ObjectLostError | None
) -> None:
    monkeypatch.setattr(model_replica, "LORA_READ_TIMEOUT_S", 0.01)

    async def read() -> Block:
        if loss is not None:
            raise loss
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(LorasMissing) as caught:
        await drawn(replica, with_ink(1.0), at_hand(read()))
    assert caught.value.keys == ("ink",)
    assert replica.stats()["images"] == 0
