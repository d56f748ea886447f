"""The pool client: events, errors that Ray raises, and replacement of a lost replica."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, OutOfMemoryError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve import pool_client
from serve.errors import AllImagesFlagged, EngineFailed, PoolFull, ReplicaLost, ServiceError
from serve.events import Alive, Event, Finished, ImageFinished, Started
from serve.generation_plan import GenerationPlan, make_plan
from serve.inputs import validate_inputs
from serve.logs import set_prediction
from serve.pool_client import PoolClient
from serve.settings import Settings

Script = Sequence[Event | Exception | asyncio.Event]


class FakeStream:
    """The response of a handle: it yields the events of a script, and raises the exceptions among them."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.cancelled = False

    async def __aiter__(self) -> AsyncIterator[Event]:
        for entry in self._script:
            if isinstance(entry, Exception):
                raise entry
            if isinstance(entry, asyncio.Event):
                await entry.wait()
                continue
            yield entry

    def cancel(self) -> None:
        self.cancelled = True


class FakeHandle:
    """A deployment handle with one script for each call."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.streams: list[FakeStream] = []
        self.calls: list[tuple[object, ...]] = []
        """The arguments of each call."""

    def options(self, **options: Any) -> "FakeHandle":
        assert options == {"method_name": "generate", "stream": True}
        return self

    def remote(self, *arguments: object) -> FakeStream:
        self.calls.append(arguments)
        self.streams.append(FakeStream(self._scripts.pop(0)))
        return self.streams[-1]


def plan() -> GenerationPlan:
    inputs, _ = validate_inputs({"prompt": "x", "num_outputs": 2}, 100)
    return make_plan(inputs, Settings(), 0)


def client(handle: FakeHandle) -> PoolClient:
    return PoolClient("dev-bf16", cast(DeploymentHandle, handle))


async def generate(handle: FakeHandle) -> list[Event]:
    return [event async for event in client(handle).generate(plan())]


def image_finished(image: int) -> ImageFinished:
    return ImageFinished(image, b"")


ALL_EVENTS = (Started(), image_finished(0), image_finished(1), Finished())


async def test_events_are_yielded_in_order() -> None:
    handle = FakeHandle(ALL_EVENTS)
    assert await generate(handle) == list(ALL_EVENTS)
    assert not handle.streams[0].cancelled


@pytest.mark.parametrize(
    "lost", [ActorDiedError(), ObjectLostError("00" * 28, None, ""), OutOfMemoryError("no memory")]
)
@pytest.mark.parametrize("started", [False, True])
async def test_lost_replica_is_reported(lost: Exception, started: bool) -> None:
    handle = FakeHandle((Alive(), *((Started(),) if started else ()), lost))
    with pytest.raises(ReplicaLost) as caught:
        await generate(handle)
    assert caught.value.started is started


async def test_replica_that_falls_silent_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_client, "SILENCE_LIMIT_S", 0.01)
    handle = FakeHandle((Alive(), asyncio.Event()))
    with pytest.raises(ReplicaLost):
        await generate(handle)
    assert handle.streams[0].cancelled


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), PoolFull),
        (RayTaskError("generate", "a traceback of 10.0.0.1", AllImagesFlagged()), AllImagesFlagged),
        (RayTaskError("generate", "a traceback of 10.0.0.1", KeyError("secret")), EngineFailed),
    ],
)
async def test_ray_errors_become_service_errors(raised: Exception, error: type[ServiceError]) -> None:
    with pytest.raises(error) as caught:
        await generate(FakeHandle((Started(), raised)))
    assert "10.0.0.1" not in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_closing_the_generator_cancels_the_call() -> None:
    handle = FakeHandle(ALL_EVENTS)
    events = client(handle).generate(plan())
    await anext(events)
    await events.aclose()
    assert handle.streams[0].cancelled


async def test_replica_gets_the_id_for_its_log() -> None:
    handle = FakeHandle(ALL_EVENTS)
    assert [event async for event in client(handle).generate(plan(), log_id="prediction a (request b)")]
    [arguments] = handle.calls
    assert arguments[4] == "prediction a (request b)"


async def test_replica_gets_the_fields_of_its_log_messages() -> None:
    handle = FakeHandle(ALL_EVENTS)

    async def call() -> None:
        set_prediction("a", "b", "dev-bf16")
        await generate(handle)

    await asyncio.create_task(call(), context=contextvars.Context())
    [arguments] = handle.calls
    assert arguments[6] == {"prediction_id": "a", "request_id": "b", "pool": "dev-bf16"}


async def test_replica_gets_the_reference_of_the_owner() -> None:
    handle, owner = FakeHandle(ALL_EVENTS), [asyncio.Event().wait()]
    pool = PoolClient("dev-bf16", cast(DeploymentHandle, handle), owner)
    assert [event async for event in pool.generate(plan())]
    [arguments] = handle.calls
    assert arguments[5] is owner
    owner[0].close()
